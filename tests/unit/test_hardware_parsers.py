"""The probe's parsers, on text as kernels and distributions write it, and on any text at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfleet.core.hardware import cpu, macos, memory, pci, storage, system
from modelfleet.core.hardware.sources import CommandResult, Sources, run_nothing

X86 = """processor\t: 0
model name\t: Intel(R) Core(TM)  i5-7360U CPU @ 2.30GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu lm avx avx2 fma f16c bmi2 hypervisor

processor\t: 1
model name\t: Intel(R) Core(TM)  i5-7360U CPU @ 2.30GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu lm avx avx2 fma bmi2 hypervisor
"""
ARM = """processor\t: 0
Features\t: fp asimd sve2 i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd87

processor\t: 1
Features\t: fp asimd sve2 i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd85
"""
RASPBERRY = """Processor\t: ARMv7 Processor rev 4 (v7l)
processor\t: 0
model name\t: ARMv7 Processor rev 4 (v7l)
Features\t: half thumb neon vfpv4
CPU implementer\t: 0x41
CPU part\t: 0xd03
"""


def test_cpuinfo_of_x86() -> None:
    processors = cpu.parse_cpuinfo(X86)
    assert len(processors) == 2
    assert cpu.cpu_model(processors) == "Intel(R) Core(TM) i5-7360U CPU @ 2.30GHz"
    assert cpu.architecture_of(processors) == "x86_64"
    assert cpu.topology_from_cpuinfo(processors) == (1, 1)


def test_only_what_every_core_can_do_is_listed() -> None:
    names = cpu.instruction_sets(cpu.parse_cpuinfo(X86))
    assert names is not None and "avx2" in names and "f16c" not in names


def test_cpuinfo_of_aarch64_names_the_kinds_of_core() -> None:
    processors = cpu.parse_cpuinfo(ARM)
    assert cpu.cpu_model(processors) == "Cortex-A725 + Cortex-X925"
    assert cpu.architecture_of(processors) == "aarch64"
    assert cpu.instruction_sets(processors) == ["asimd", "bf16", "fp", "i8mm", "sve2"]
    assert cpu.topology_from_cpuinfo(processors) == (None, None)


def test_an_arm_core_of_an_unknown_maker_keeps_its_numbers() -> None:
    processors = cpu.parse_cpuinfo("processor: 0\nCPU implementer: 0x48\nCPU part: 0xd01\n")
    assert cpu.cpu_model(processors) == "implementer 0x48 part 0xd01"


def test_the_summary_line_of_an_old_arm_kernel_is_no_processor() -> None:
    processors = cpu.parse_cpuinfo(RASPBERRY)
    assert len(processors) == 1
    assert cpu.architecture_of(processors) is None, "32-bit Arm is not told by its features"


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3,8", [0, 1, 2, 3, 8]), ("0\n", [0]), ("", []), ("0-", []), ("a", []), ("5-3", [])]
)
def test_cpu_list(text: str, numbers: list[int]) -> None:
    assert cpu.parse_cpu_list(text) == numbers


@pytest.mark.parametrize(
    ("text", "size"), [("48K", 49152), ("36M", 37748736), ("512", 512), ("48k", None), ("", None), ("-1K", None)]
)
def test_cache_size(text: str, size: int | None) -> None:
    assert cpu.parse_cache_size(text) == size


def test_meminfo() -> None:
    text = (
        "MemTotal:       24684092 kB\nMemAvailable:   23720204 kB\nHugePages_Total:       0\nActive(anon):     12 kB\n"
    )
    assert memory.parse_meminfo(text) == {
        "MemTotal": 24684092 * 1024,
        "MemAvailable": 23720204 * 1024,
        "Active(anon)": 12288,
    }


def test_cgroup_limits_are_sought_up_to_the_root() -> None:
    groups = memory.parse_cgroup("4:memory:/a/b\n1:cpu:/c\n0::/d\n")
    assert list(memory.limit_files(groups)) == [
        "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/d/memory.max",
        "/sys/fs/cgroup/unified/d/memory.max",
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/unified/memory.max",
    ]


def test_a_cgroup_path_cannot_leave_the_hierarchy() -> None:
    files = list(memory.limit_files([("", "/../../etc")]))
    assert all(path.startswith("/sys/fs/cgroup/") and ".." not in path for path in files)


MOUNTINFO = """22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 8:17 / /srv/my\\040models rw shared:5 master:1 - xfs /dev/sdb1 rw
31 27 0:50 / /srv rw,relatime - nfs4 nas:/export rw
"""


def test_mountinfo_with_and_without_optional_fields() -> None:
    mounts = storage.parse_mountinfo(MOUNTINFO)
    assert [mount.mount_point for mount in mounts] == ["/proc", "/", "/srv/my models", "/srv"]
    assert mounts[2] == storage.Mount("/srv/my models", "xfs", "/dev/sdb1", "8:17")


@pytest.mark.parametrize(
    ("path", "number", "found"),
    [
        ("/opt/models", "", "/"),
        ("/srv/my models/store", "", "/srv/my models"),
        ("/srv/my modelsx", "", "/srv"),
        ("/srv", "", "/srv"),
        # /srv was mounted over the deeper one, which is hidden: the path's own number tells.
        ("/srv/my models/store", "0:50", "/srv"),
        # btrfs reports a number that no line has.
        ("/opt", "0:99", "/"),
    ],
)
def test_the_mount_of_a_path(path: str, number: str, found: str) -> None:
    mount = storage.find_mount(storage.parse_mountinfo(MOUNTINFO), path, number)
    assert mount is not None and mount.mount_point == found


def test_the_last_of_several_mounts_on_one_point_counts() -> None:
    mounts = storage.parse_mounts("rootfs / rootfs rw 0 0\n/dev/sda1 / ext3 rw 0 0\n")
    mount = storage.find_mount(mounts, "/opt")
    assert mount is not None and mount.file_system == "ext3"


def test_no_mounts_no_guess() -> None:
    assert storage.find_mount([], "/opt") is None


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ('ID=debian\nVERSION_ID="12"\n', "debian"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "debian"),
        ("ID='rocky'\nID_LIKE='rhel centos fedora'\n", "redhat"),
        ('ID=opensuse-leap\nID_LIKE="suse opensuse"\n', "suse"),
        ("ID=opensuse-tumbleweed\n", "suse"),
        ("ID=homemade\n", None),
        ("", None),
    ],
)
def test_the_family_of_a_distribution(text: str, family: str | None) -> None:
    assert system.family_of(system.parse_os_release(text)) == family


def test_os_release_quotes_and_comments() -> None:
    text = '# comment\nNAME="A \\"B\\" \\$C"\nVERSION_ID=12\nodd line\nEMPTY=\n'
    assert system.parse_os_release(text) == {"NAME": 'A "B" $C', "VERSION_ID": "12", "EMPTY": ""}


def test_the_kernel_of_a_record() -> None:
    assert system.kernel_from_version("Linux version 6.17.0-1014-nvidia (buildd@x) (gcc)") == "6.17.0-1014-nvidia"
    assert system.kernel_from_version("Darwin") is None


@pytest.mark.parametrize(
    ("firmware", "hypervisor"),
    [
        ("QEMU Standard PC (Q35 + ICH9, 2009) SeaBIOS", "qemu"),
        ("Red Hat KVM", "kvm"),
        ("VMware, Inc. VMware Virtual Platform", "vmware"),
        ("Microsoft Corporation Virtual Machine", "hyperv"),
        ("Microsoft Corporation Surface Pro", None),
        ("Dell Inc. PowerEdge R910", None),
    ],
)
def test_the_hypervisor_by_its_firmware(firmware: str, hypervisor: str | None) -> None:
    assert system.hypervisor_of(firmware) == hypervisor


@pytest.mark.parametrize(
    ("class_id", "vendor", "accelerator"),
    [
        ("030000", "10de", True),
        ("030200", "10de", True),
        ("038000", "1002", True),
        ("120000", "1002", True),
        ("120000", "8086", False),
        ("030000", "8086", True),
        ("030000", "1a03", False),
        ("030000", "102b", False),
        ("030000", "1234", False),
        ("040300", "10de", False),
    ],
)
def test_what_an_accelerator_is(class_id: str, vendor: str, accelerator: bool) -> None:
    assert pci.is_accelerator(class_id, vendor) is accelerator


SYSCTL = """hw.ncpu: 8
hw.packages: 1
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.memsize: 17179869184
hw.optional.arm64: 1
hw.optional.arm.FEAT_BF16: 0
hw.optional.arm.FEAT_DotProd: 1
machdep.cpu.brand_string: Apple M1
kern.osrelease: 23.5.0
kern.bootsessionuuid: 5C6BD0A2-0000-4000-8000-000000000000
kern.hv_vmm_present: 0
"""
SW_VERS = "ProductName:\t\tmacOS\nProductVersion:\t\t14.5\nBuildVersion:\t\t23F79\n"


def test_a_mac_by_what_it_says() -> None:
    unknown: dict[str, str] = {}
    answers = {macos.SYSCTL: SYSCTL, macos.SW_VERS: SW_VERS}
    sources = Sources("/", lambda words, limit: CommandResult("ok", answers.get(tuple(words), "")))
    found, main_memory, mac, gpus = macos.read_hardware(sources, "arm64", unknown, {})
    assert (found.model, found.physical_cores, found.instruction_sets) == ("Apple M1", 8, ["dotprod"])
    assert main_memory.total_bytes == 16 * 1024**3
    assert (mac.distribution, mac.version, mac.kernel) == ("macos", "14.5", "23.5.0")
    assert [(gpu.vendor, gpu.name, gpu.pci) for gpu in gpus] == [("apple", "Apple M1", None)]
    assert "memory.available_bytes" in unknown


def test_a_silent_mac_is_unknown_and_no_error() -> None:
    unknown: dict[str, str] = {}
    found, main_memory, _, gpus = macos.read_hardware(Sources("/", run_nothing), None, unknown, {})
    assert found.model is None and main_memory.total_bytes is None and gpus == []
    assert {"cpu.model", "memory.total_bytes", "os.version", "accelerators"} <= set(unknown)


def test_the_names_of_intels_features_are_those_of_linux() -> None:
    values = {"machdep.cpu.features": "FPU SSE4.2 AVX1.0 FMA", "machdep.cpu.leaf7_features": "AVX2 BMI2"}
    assert macos.instruction_sets(values) == ["avx", "avx2", "bmi2", "fma", "fpu", "sse4_2"]


def no_error(text: str) -> None:
    """Feed ``text`` to every parser."""
    processors = cpu.parse_cpuinfo(text)
    cpu.cpu_model(processors)
    cpu.architecture_of(processors)
    cpu.topology_from_cpuinfo(processors)
    cpu.parse_cpu_list(text)
    cpu.parse_cache_size(text)
    memory.parse_meminfo(text)
    list(memory.limit_files(memory.parse_cgroup(text)))
    for mounts in (storage.parse_mountinfo(text), storage.parse_mounts(text)):
        storage.find_mount(mounts, text)
    system.family_of(system.parse_os_release(text))
    system.kernel_from_version(text)
    system.hypervisor_of(text)
    pci.parse_id(text)
    values = macos.parse_pairs(text)
    macos.instruction_sets(values)
    for name in values:
        macos.number(values, name)


@given(st.text())
def test_no_text_raises(text: str) -> None:
    no_error(text)


# What resembles the true files reaches further than plain noise.
WORDS = st.sampled_from(
    [
        *("processor: 0\n", "flags: lm", "CPU part: 0x", "CPU implementer: ", "physical id: ", "MemTotal: ", " kB\n"),
        *("0::/", "4:memory:", "27 1 254:0 / / rw - ext4 /dev/vda rw\n", "/dev/sda / ext4 rw\n", "\\040", "\\777"),
        *("ID=", '"', "'", ":", "0-", "999999", ",", "-", "٣", "²", "/..", "hw.memsize: ", "K", "Linux version "),
        *(" - ", "\n", "\0"),
    ]
)


@given(st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=30).map("".join))
def test_no_damaged_file_raises(text: str) -> None:
    no_error(text)
