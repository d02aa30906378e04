"""What the kernel counts, from files as kernels write them."""

from pathlib import Path

import pytest

from fedlog.local.out_of_memory import kernel_kills


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="nothing to read"),
        pytest.param({"proc/vmstat": "nr_free 1\noom_kill 7\n"}, 7, id="the machine's"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.events": "oom 9\noom_kill 2\noom_group_kill 0\n",
                "proc/vmstat": "oom_kill 7\n",
            },
            2,
            id="cgroup version 2",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/c\n0::/\n",
                "sys/fs/cgroup/memory/c/memory.oom_control": "oom_kill_disable 0\noom_kill 3\n",
            },
            3,
            id="cgroup version 1",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/gone\n", "proc/vmstat": "oom_kill 7\n"},
            7,
            id="a group that cannot be read",
        ),
    ],
)
def test_the_count_of_the_group_comes_before_that_of_the_machine(tmp_path, files, expected):
    assert kernel_kills(write(tmp_path, files)) == expected
