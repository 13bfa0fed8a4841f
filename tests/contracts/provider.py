"""What every provider must do: a subclass says how to make one, and runs all of these."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from labctl.vms.names import new_name, new_snapshot
from labctl.vms.provider import Misconfigured, NoCapacity, Provider, ProviderError, Wanted


class ProviderContract:
    """Subclass as ``Test...`` and give ``make`` (a new provider over the same world), ``wanted`` and ``unknown``."""

    #: A template that is there, and the ``options`` of a pool that go with it.
    template: ClassVar[str] = "debian-12"
    options: ClassVar[Mapping[str, Any]] = {}
    #: A template that is not there; None: this provider takes what it is given.
    unknown: ClassVar[str | None] = None
    #: Its hypervisors, beyond the two that a VM is moved between.
    other_hosts: ClassVar[frozenset[str]] = frozenset()

    @pytest.fixture
    def make(self) -> Callable[[], Provider]:
        """Give what makes a provider object, each time over the same world, as another process would."""
        raise NotImplementedError

    @pytest.fixture
    def provider(self, make: Callable[[], Provider]) -> Provider:
        return make()

    @pytest.fixture
    def wanted(self) -> Wanted:
        return Wanted(new_name("contract-"), self.template, self.options)

    def test_a_vm_that_was_made_is_found_and_listed(self, provider: Provider, wanted: Wanted) -> None:
        provider.create(wanted)

        assert provider.look_up(wanted.name) is not None
        assert wanted.name in provider.names()

    def test_to_make_a_vm_twice_is_to_make_it_once(self, provider: Provider, wanted: Wanted) -> None:
        provider.create(wanted)
        before = provider.look_up(wanted.name)
        provider.create(wanted)
        after = provider.look_up(wanted.name)

        assert before is not None and after is not None and after.host == before.host
        assert sorted(name for name in provider.names() if name == wanted.name) == [wanted.name]

    def test_two_threads_that_make_one_vm_make_one(self, make: Callable[[], Provider], wanted: Wanted) -> None:
        errors: list[Exception] = []
        barrier = threading.Barrier(2)

        def create(provider: Provider) -> None:
            barrier.wait()
            try:
                provider.create(wanted)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=create, args=(make(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        # One may have failed because of the other; asked again it succeeds, and there is still only one.
        provider = make()
        if errors:
            provider.create(wanted)
        assert provider.look_up(wanted.name) is not None
        provider.destroy(wanted.name)
        assert provider.look_up(wanted.name) is None
        assert wanted.name not in provider.names()

    def test_what_nobody_made_is_not_found(self, provider: Provider) -> None:
        assert provider.look_up(new_name("nobody-")) is None

    def test_a_destroyed_vm_is_gone_and_to_destroy_it_again_is_no_error(
        self, provider: Provider, wanted: Wanted
    ) -> None:
        provider.create(wanted)
        provider.destroy(wanted.name)
        provider.destroy(wanted.name)

        assert provider.look_up(wanted.name) is None
        assert wanted.name not in provider.names()

    def test_to_destroy_what_never_was_is_no_error(self, provider: Provider) -> None:
        provider.destroy(new_name("nobody-"))

    def test_another_process_knows_what_this_one_has_made(self, make: Callable[[], Provider], wanted: Wanted) -> None:
        make().create(wanted)

        other = make()
        assert wanted.name in other.names()
        assert other.look_up(wanted.name) is not None
        other.destroy(wanted.name)
        assert make().look_up(wanted.name) is None

    def test_vms_do_not_get_in_each_others_way(self, provider: Provider, wanted: Wanted) -> None:
        other = replace(wanted, name=new_name("contract-"))
        provider.create(wanted)
        provider.create(other)
        provider.destroy(wanted.name)

        assert provider.look_up(other.name) is not None
        assert provider.names() & {wanted.name, other.name} == {other.name}

    def test_an_unknown_template_is_a_matter_of_configuration_and_leaves_nothing(
        self, provider: Provider, wanted: Wanted
    ) -> None:
        if self.unknown is None:
            pytest.skip("this provider takes any template")
        with pytest.raises(Misconfigured):
            provider.create(replace(wanted, template=self.unknown))
        assert wanted.name not in provider.names()

    def test_a_disk_is_added_once_however_often_it_is_asked_for_or_the_provider_says_that_it_cannot(
        self, provider: Provider, wanted: Wanted
    ) -> None:
        provider.create(wanted)
        if "disk" not in provider.capabilities:
            with pytest.raises(Misconfigured):
                provider.add_disk(wanted.name, 1, 1)
            return
        provider.add_disk(wanted.name, 1, 1)
        provider.add_disk(wanted.name, 1, 1)
        provider.add_disk(wanted.name, 2, 1)
        assert provider.look_up(wanted.name) is not None
        self.check_disks(provider, wanted.name, [1, 1])

    def check_disks(self, provider: Provider, name: str, gigabytes: list[int]) -> None:
        """Look at the disks, where the provider's world lets us."""

    def test_a_vm_reverts_to_its_snapshot_and_runs_or_the_provider_says_that_it_cannot(
        self, provider: Provider, wanted: Wanted
    ) -> None:
        provider.create(wanted)
        snapshot = new_snapshot()
        if "snapshot" not in provider.capabilities:
            with pytest.raises(Misconfigured):
                provider.snapshot(wanted.name, snapshot)
        else:
            provider.snapshot(wanted.name, snapshot)
            provider.snapshot(wanted.name, snapshot)
        if "revert" not in provider.capabilities:
            with pytest.raises(Misconfigured):
                provider.revert(wanted.name, snapshot)
        else:
            provider.revert(wanted.name, snapshot)
            provider.revert(wanted.name, snapshot)
        assert provider.look_up(wanted.name) is not None

    @pytest.mark.parametrize("live", [True, False])
    def test_a_vm_leaves_its_hypervisor_with_all_it_has_or_the_provider_says_that_it_cannot(
        self, provider: Provider, wanted: Wanted, live: bool
    ) -> None:
        provider.create(wanted)
        before = provider.look_up(wanted.name)
        assert before is not None
        avoid = {before.host}
        if ("live_migrate" if live else "migrate") not in provider.capabilities:
            with pytest.raises(Misconfigured):
                provider.migrate(wanted.name, avoid, live=live)
            return
        provider.add_disk(wanted.name, 1, 1)
        provider.migrate(wanted.name, avoid, live=live)
        after = provider.look_up(wanted.name)
        assert after is not None and after.host != before.host
        # Asked again, it is where it should be.
        provider.migrate(wanted.name, avoid, live=live)
        again = provider.look_up(wanted.name)
        assert again is not None and again.host == after.host
        self.check_disks(provider, wanted.name, [1])
        with pytest.raises(NoCapacity):
            provider.migrate(wanted.name, {before.host, after.host, *self.other_hosts}, live=live)
        assert sorted(name for name in provider.names() if name == wanted.name) == [wanted.name]

    def test_who_can_migrate_live_can_migrate(self, provider: Provider) -> None:
        assert "live_migrate" not in provider.capabilities or "migrate" in provider.capabilities

    def test_to_migrate_what_is_not_there_has_failed(self, provider: Provider) -> None:
        with pytest.raises(ProviderError):
            provider.migrate(new_name("nobody-"), {"one"}, live=False)

    def test_disks_and_snapshots_go_with_their_vm(self, provider: Provider, wanted: Wanted) -> None:
        provider.create(wanted)
        if "disk" in provider.capabilities:
            provider.add_disk(wanted.name, 1, 1)
        if "snapshot" in provider.capabilities:
            provider.snapshot(wanted.name, new_snapshot())
        provider.destroy(wanted.name)

        assert provider.look_up(wanted.name) is None
        assert wanted.name not in provider.names()
