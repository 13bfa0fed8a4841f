"""What Ansible sends to the hosts for us: modules for whatever Python these have, which know no labctl."""
