"""The coordinator of one machine passes the suite for coordinators."""

from embedkit_core.coordination.local.coordinator import LocalCoordinator
from embedkit_core.testing import CoordinationSuite


class TestLocalCoordinator(CoordinationSuite):
    """Other tests kill and stop real processes: here the lock of an owner is released, or its renewal set back."""

    def make(self, folder):
        self.folder = folder / "embedkit-coordination-v1"
        return LocalCoordinator(self.folder)

    def kill(self, coordinator):
        coordinator._resources.lock.close()
        LocalCoordinator(self.folder).budgets()

    def stop(self, coordinator):
        store, name = coordinator._store, coordinator._resources.lock.name
        store.execute("UPDATE Owners SET renewed_at = renewed_at - 60 WHERE name = ?", (name,))
        LocalCoordinator(self.folder).budgets()
