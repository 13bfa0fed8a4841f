"""The edge that knows Pecan and HTTP, and no domain."""
