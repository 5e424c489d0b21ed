"""The rules of readiness that concern the driver (MF-DRV): each names one fault and its cure.

Each rule's source is in its docstring. The floors of the CUDA wheels are those of minor-version compatibility:
https://docs.nvidia.com/deploy/cuda-compatibility/ (CUDA 11.x needs 450, 12.x 525, 13.x 580).
"""

from typing import List, Mapping, Optional, Tuple

from .driver_state import NOT_TOLD
from .facts_view import Facts, version_numbers
from .nvidia_cards import (
    LAST_BRANCH_OLDER,
    LAST_BRANCH_PROPRIETARY_ONLY,
    OLDER,
    OPEN_ONLY,
    PROPRIETARY_ONLY,
    flavour_of_card,
    flavour_of_machine,
)
from .requirements import Requirements
from .verdict import FAIL, PASS, WARN, Rule, Verdict, graded, unknown

STATE = "accelerator_driver"
APPLY = "run ./modelfleet apply (role accelerator)"
REBOOT = "reboot the host, or set accelerator_reboot_ok: true"
CUDA_FLOORS = {11: 450, 12: 525, 13: 580}
# gfx1031 (RX 6700 and 6750) and gfx1032 (RX 6600 and 6650) take the code that ROCm carries for gfx1030.
GFX_OVERRIDES = {"gfx1031": "10.3.0", "gfx1032": "10.3.0"}
# Reasons for a reboot that do not touch a driver at work begin so: a flag file, a newer kernel.
GENERAL_REASONS = ("/", "kernel ")
Profiles = Mapping[str, Requirements]


def vendor_of(facts: Facts) -> Optional[str]:
    """Return whose driver the state describes."""
    return facts.text(f"{STATE}.vendor")


def is_nvidia(facts: Facts) -> bool:
    """True where the state is that of NVIDIA's driver."""
    return vendor_of(facts) == "nvidia"


def version_of(facts: Facts) -> Optional[str]:
    """Return the version of the driver as it is, or as it will be: loaded, on disk, or that of the libraries."""
    names = ("loaded_version", "installed_version", "library_version")
    return next((version for version in (facts.text(f"{STATE}.{name}") for name in names) if version), None)


def is_installed(facts: Facts) -> bool:
    """True where a module of NVIDIA is loaded or was built for some kernel, or its version on disk is known."""
    known = facts.text(f"{STATE}.loaded_version") or facts.text(f"{STATE}.installed_version")
    return bool(known) or any(facts.flag(f"{STATE}.dkms.{when}") is not None for when in ("running", "next"))


def answers(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """The driver is installed, loaded, and answers in time (NVIDIA driver README, "Known Issues"; Xid catalog)."""
    if vendor_of(facts) is None:
        return None
    required = "installed, loaded and answering"
    if not is_nvidia(facts):
        own = facts.of_vendor(vendor_of(facts) or "")
        # A driver that has told its version is at work, whether or not a bus tells which one it is.
        bound = sorted(
            {one["driver"] or one["driver_version"] for one in own if one["driver"] or one["driver_version"]}
        )
        first = next((n for n, one in enumerate(facts.accelerators) if one["vendor"] == vendor_of(facts)), 0)
        if not bound and facts.reason(f"accelerators.{first}.driver") != "not told":
            return unknown(facts, f"accelerators.{first}.driver", required)
        cure = "install the distribution's kernel and firmware packages of this GPU (firmware-amd-graphics on Debian)"
        return graded(bool(bound), True, ", ".join(bound) or "not loaded", required, cure)
    loaded, installed = facts.text(f"{STATE}.loaded_version"), facts.text(f"{STATE}.installed_version")
    if facts.flag(f"{STATE}.slow"):
        cure = "look for Xid errors (dmesg | grep -i xid), then reboot the host"
        return Verdict(FAIL, f"{loaded or installed or 'the driver'}: nvidia-smi gives no answer", required, cure)
    if loaded:
        return Verdict(PASS, loaded, required)
    if installed:
        cure = f"load it (modprobe nvidia; dmesg tells why not), or {REBOOT}"
        return Verdict(FAIL, f"{installed} installed, not loaded", required, cure)
    if facts.reason(f"{STATE}.loaded_version") == NOT_TOLD:
        return unknown(facts, f"{STATE}.loaded_version", required)
    return Verdict(FAIL, "not loaded" if is_installed(facts) else "not installed", required, APPLY)


def loaded_is_installed(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """The loaded module is the one on disk: else the next boot starts another (dkms(8), modinfo(8))."""
    loaded, installed = facts.text(f"{STATE}.loaded_version"), facts.text(f"{STATE}.installed_version")
    if not is_nvidia(facts) or loaded is None or installed is None:
        return None
    same = loaded == installed
    return Verdict(PASS if same else WARN, f"loaded {loaded}, on disk {installed}", "the same", "" if same else REBOOT)


def libraries_match(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """Module and libraries are of one version: else "Failed to initialize NVML: Driver/library version mismatch".

    NVIDIA driver README, "Installed Components": all components must be of the same release.
    """
    if not is_nvidia(facts) or facts.flag(f"{STATE}.mismatch") is None:
        return None
    loaded, library = facts.text(f"{STATE}.loaded_version"), facts.text(f"{STATE}.library_version")
    bad = facts.flag(f"{STATE}.mismatch")
    measured = f"module {loaded}, libraries {library}"
    return Verdict(FAIL if bad else PASS, measured, "the same version", REBOOT if bad else "")


def flavour_fits(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """Open or proprietary modules as the card takes them: see nvidia_cards.py for the sources."""
    if not is_nvidia(facts):
        return None
    needed = flavour_of_machine(facts.accelerators)
    if needed == "mixed":
        cure = "take out the older cards or the newer ones: no one driver serves both"
        return Verdict(FAIL, "cards that need different modules", "cards that one driver serves", cure)
    flavour = facts.text(f"{STATE}.flavour")
    if flavour is None or needed is None:
        return None
    if needed == OPEN_ONLY and flavour != "open":
        return Verdict(FAIL, flavour, "open (Blackwell)", f"{APPLY}: it installs the open modules")
    if needed in (PROPRIETARY_ONLY, OLDER) and flavour != "proprietary":
        return Verdict(FAIL, flavour, "proprietary (before Turing)", f"{APPLY}: it installs the proprietary modules")
    return Verdict(PASS, flavour, "open" if needed == OPEN_ONLY else "as the card takes it")


def branch_fits(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """Maxwell, Pascal and Volta run with branches up to R580, older cards up to R470: see nvidia_cards.py."""
    if not is_nvidia(facts):
        return None
    flavours = {flavour_of_card(one) for one in facts.of_vendor("nvidia")}
    limit = LAST_BRANCH_OLDER if OLDER in flavours else LAST_BRANCH_PROPRIETARY_ONLY
    numbers = version_numbers(version_of(facts))
    if not flavours & {OLDER, PROPRIETARY_ONLY} or not numbers:
        return None
    cure = f"install branch {limit} (accelerator_nvidia_branch: '{limit}')"
    return graded(numbers[0] <= limit, True, f"branch {numbers[0]}", f"at most {limit} for this card", cure)


def cuda_floor(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """The driver is new enough for the CUDA of the wheels (cuda-compatibility, see the module's text).

    CUDA 13 wheels need compute capability 7.5: for an older card the minimum is all that is recommended.
    """
    version = version_of(facts)
    numbers = version_numbers(version)
    if not is_nvidia(facts) or not numbers:
        return None
    older = {flavour_of_card(one) for one in facts.of_vendor("nvidia")} & {OLDER, PROPRIETARY_ONLY}
    wanted = [profiles[name].cuda_major for name in ("minimum", "minimum" if older else "recommended")]
    # A CUDA newer than this table needs at least what the newest known one does.
    floors = [CUDA_FLOORS.get(cuda, max(CUDA_FLOORS.values()) if cuda > max(CUDA_FLOORS) else 0) for cuda in wanted]
    required = f"{floors[0]} for CUDA {wanted[0]}, recommended {floors[1]} for CUDA {wanted[1]}"
    cure = f"install branch {floors[1]} or newer; where the distribution has none: accelerator_nvidia_source: nvidia"
    return graded(numbers[0] >= floors[0], numbers[0] >= floors[1], str(version), required, cure)


def nouveau_absent(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """nouveau, which keeps the card from NVIDIA's driver, is not loaded (NVIDIA driver README, chapter on nouveau)."""
    loaded = facts.flag(f"{STATE}.nouveau_loaded")
    if not is_nvidia(facts) or loaded is None:
        return None
    cure = f"{APPLY}: it blacklists nouveau and rebuilds the initramfs; then {REBOOT}"
    return graded(not loaded, True, "loaded" if loaded else "not loaded", "not loaded", cure)


def secure_boot_signed(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """Under Secure Boot the module has a signature (docs.kernel.org/admin-guide/module-signing.html; mokutil(1))."""
    if not is_nvidia(facts):
        return None
    required = "a signed module, or Secure Boot off"
    active, signed = facts.flag(f"{STATE}.secure_boot"), facts.flag(f"{STATE}.module_signed")
    if active is None:
        return unknown(facts, f"{STATE}.secure_boot", required, "ask on the machine itself: mokutil --sb-state")
    if not active:
        return Verdict(PASS, "Secure Boot is off", required)
    loaded = facts.text(f"{STATE}.loaded_version")
    if signed and loaded:
        return Verdict(PASS, "on, the module is signed and loaded", required)
    enrol = "at the machine's console enrol the signing key: mokutil --import KEY, reboot, confirm"
    if signed:
        return Verdict(
            WARN, "on, the module is signed, not loaded", required, f"{enrol}; unless it is enrolled already"
        )
    measured = "on, the module is not signed" if signed is False else "on, no signed module is installed"
    return Verdict(FAIL, measured, required, f"install signed packages where the distribution has them; else {enrol}")


def _headers(facts: Facts, when: str) -> Optional[Verdict]:
    """Judge the headers for one kernel: without them DKMS cannot build."""
    kernel, there = facts.text(f"{STATE}.headers.{when}_kernel"), facts.flag(f"{STATE}.headers.{when}")
    if not is_nvidia(facts) or kernel is None or there is None:
        return None
    cure = (
        f"install the headers of {kernel} (linux-headers-{kernel} on Debian and Ubuntu, kernel-devel-{kernel} on RHEL)"
    )
    measured = f"{kernel}: {'installed' if there else 'missing'}"
    # A module that is there already works without headers, until it has to be built again.
    built = bool(facts.flag(f"{STATE}.dkms.{when}"))
    return graded(there or built, there, measured, "installed", cure)


def headers_running(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """The headers of the running kernel are installed (dkms(8); Debian wiki, NvidiaGraphicsDrivers)."""
    return _headers(facts, "running")


def headers_next(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """The headers of the kernel that the next boot starts are installed (dkms(8)); where it is another one."""
    return None if same_kernel(facts) else _headers(facts, "next")


def same_kernel(facts: Facts) -> bool:
    """True where the next boot starts the running kernel."""
    running, following = (facts.text(f"{STATE}.headers.{when}_kernel") for when in ("running", "next"))
    return running == following


def _built(facts: Facts, when: str) -> Optional[Verdict]:
    kernel, built = facts.text(f"{STATE}.headers.{when}_kernel"), facts.flag(f"{STATE}.dkms.{when}")
    if not is_nvidia(facts) or kernel is None or built is None:
        return None
    cure = f"install the headers of {kernel}, then dkms autoinstall -k {kernel}; its log is in /var/lib/dkms"
    measured = f"{kernel}: {'there' if built else 'not built'}"
    return graded(built, True, measured, "a module for this kernel", cure)


def built_running(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """The module is on disk for the running kernel, from DKMS or from a package (dkms(8))."""
    return _built(facts, "running")


def built_next(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """The module is on disk for the kernel that the next boot starts, where it is another one (dkms(8))."""
    return None if same_kernel(facts) else _built(facts, "next")


def none_held(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """No package of driver or kernel is held: it would not be changed (apt-mark(8), dnf's versionlock)."""
    if vendor_of(facts) is None or facts.text(f"{STATE}.packages.manager") is None:
        return None
    held = facts.words(f"{STATE}.packages.held")
    cure = "if it is not meant: apt-mark unhold PACKAGE, or dnf versionlock delete PACKAGE; the role leaves it alone"
    return graded(True, not held, ", ".join(held) or "none", "none held", cure)


def none_half_configured(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """No package is half-installed or half-configured: dpkg would go on with nothing else (dpkg(1))."""
    if vendor_of(facts) is None or facts.text(f"{STATE}.packages.manager") != "dpkg":
        return None
    found = facts.words(f"{STATE}.packages.half_configured")
    cure = "dpkg --configure -a, then apt-get --fix-broken install; their words say what failed"
    return graded(not found, True, ", ".join(found) or "none", "none half-configured", cure)


def not_locked(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """No other process has the package manager locked (apt's Debian FAQ on /var/lib/dpkg/lock-frontend; proc(5))."""
    if vendor_of(facts) is None or facts.text(f"{STATE}.packages.manager") is None:
        return None
    locked = facts.flag(f"{STATE}.packages.locked")
    if locked is None:
        return unknown(facts, f"{STATE}.packages.locked", "not locked")
    cure = (
        "wait for it: the role waits accelerator_lock_timeout_seconds; who it is: fuser -v /var/lib/dpkg/lock-frontend"
    )
    return graded(True, not locked, "locked" if locked else "not locked", "not locked", cure)


def no_reboot_pending(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """No reboot is due; one that the driver waits for fails (Debian policy on /run/reboot-required)."""
    if vendor_of(facts) is None:
        return None
    pending = facts.flag(f"{STATE}.reboot_pending")
    if pending is None:
        return unknown(facts, f"{STATE}.reboot_pending", "none")
    reasons = facts.words(f"{STATE}.reboot_reasons")
    if not pending:
        return Verdict(PASS, "none", "none")
    ours: List[str] = [reason for reason in reasons if not reason.startswith(GENERAL_REASONS)]
    return Verdict(FAIL if ours else WARN, "; ".join(reasons) or "pending", "none", REBOOT)


def persistence_active(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """nvidia-persistenced runs, so that the driver keeps its state between clients (NVIDIA, "Driver Persistence")."""
    state = facts.text(f"{STATE}.persistence_daemon")
    if not is_nvidia(facts) or state is None or not is_installed(facts):
        return None
    cure = f"systemctl enable --now nvidia-persistenced, or {APPLY}"
    return graded(True, state == "active", state, "active", cure)


def in_groups(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """The account that uses an AMD or Intel GPU is in render and video (ROCm installation, "Prerequisites").

    NVIDIA's device files are open to all.
    """
    if vendor_of(facts) not in ("amd", "intel"):
        return None
    required = "member of render and video"
    account = facts.text(f"{STATE}.groups.account") or "the account"
    missing = []
    for name in ("render", "video"):
        member = facts.flag(f"{STATE}.groups.{name}")
        if member is None:
            return unknown(facts, f"{STATE}.groups.{name}", required, f"once the account is there: {APPLY}")
        missing += [] if member else [name]
    measured = f"{account} is not in {' and '.join(missing)}" if missing else f"{account} is in both"
    cure = f"usermod --append --groups {','.join(missing)} {account}, then log in again"
    return graded(not missing, True, measured, required, cure)


def gfx_override_set(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """gfx1031 and gfx1032 run ROCm's code for gfx1030 (ROCm documentation, "System requirements")."""
    needed = sorted({str(one.get("gfx_target")) for one in facts.of_vendor("amd")} & set(GFX_OVERRIDES))
    if not needed:
        return None
    value = GFX_OVERRIDES[needed[0]]
    required = f"HSA_OVERRIDE_GFX_VERSION={value} for {', '.join(needed)}"
    found = facts.text(f"{STATE}.gfx_override")
    cure = f"set HSA_OVERRIDE_GFX_VERSION={value} in /etc/environment, or {APPLY}"
    return graded(found == value, True, found or "not set", required, cure)


RULES: Tuple[Rule, ...] = (
    Rule("MF-DRV-001", "driver answers", answers),
    Rule("MF-DRV-002", "loaded module is the one on disk", loaded_is_installed),
    Rule("MF-DRV-003", "module and libraries match", libraries_match),
    Rule("MF-DRV-004", "module flavour fits the card", flavour_fits),
    Rule("MF-DRV-005", "driver branch fits the card", branch_fits),
    Rule("MF-DRV-006", "driver floor of the CUDA wheels", cuda_floor),
    Rule("MF-DRV-007", "nouveau", nouveau_absent),
    Rule("MF-DRV-008", "Secure Boot", secure_boot_signed),
    Rule("MF-DRV-009", "headers of the running kernel", headers_running),
    Rule("MF-DRV-010", "headers of the next kernel", headers_next),
    Rule("MF-DRV-011", "module for the running kernel", built_running),
    Rule("MF-DRV-012", "module for the next kernel", built_next),
    Rule("MF-DRV-013", "held packages", none_held),
    Rule("MF-DRV-014", "half-configured packages", none_half_configured),
    Rule("MF-DRV-015", "package manager's lock", not_locked),
    Rule("MF-DRV-016", "pending reboot", no_reboot_pending),
    Rule("MF-DRV-017", "persistence daemon", persistence_active),
    Rule("MF-DRV-018", "groups render and video", in_groups),
    Rule("MF-DRV-019", "ROCm override", gfx_override_set),
)
