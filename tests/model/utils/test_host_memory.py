import pytest

from setokim.utils import host_memory
from setokim.utils.host_memory import free_memory, require_memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Set the memory that the system reports."""
    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)

    def say(**files):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)

    return say


def test_free_memory_is_that_of_the_machine_or_of_its_container(machine):
    assert free_memory() is None
    machine(meminfo="MemTotal:       100 kB\nMemAvailable:    8 kB\n")
    assert free_memory() == 8192
    machine(memory_max="max\n", memory_current="1\n", memory_stat="inactive_file 0\n")
    assert free_memory() == 8192
    machine(memory_max="7000\n", memory_current="6000\n", memory_stat="a 1\ninactive_file 500\n")
    assert free_memory() == 1500
    machine(memory_max="70000\n")
    assert free_memory() == 8192


def test_allocations_that_do_not_fit_are_refused(machine):
    require_memory(2**60, "grid")
    machine(meminfo="MemAvailable: 1048576 kB\n")
    require_memory(2**30, "grid")
    with pytest.raises(ValueError, match=r"grid: expected a size within 1\.0 GiB .* 2\.0 GiB"):
        require_memory(2**31, "grid")
