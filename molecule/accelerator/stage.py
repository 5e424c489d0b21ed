"""Write the trees of machines with one fault each to /srv/machines: what the probe would find on such a machine."""

import os
import shutil

TOP = "/srv/machines"
KERNEL = "6.1.0-40-amd64"
# That of the machine that Ansible runs on, which the container shares: these are never rebooted, whatever is allowed.
with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot_id:
    BOOT_ID = boot_id.read().strip()
OLD, NEW = "580.82.09", "580.95.05"
CARD = "/sys/bus/pci/devices/0000:01:00.0"
DKMS = "/lib/modules/" + KERNEL + "/updates/dkms"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# An RTX 3080 that works, on Debian 12.
READY = {
    "/etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
    "/etc/passwd": "ashley-ai:x:1000:1000::/home/ashley-ai:/bin/bash\n",
    "/etc/group": "video:x:44:\nrender:x:104:\n",
    "/proc/cpuinfo": "processor : 0\nmodel name : Staged CPU\nphysical id : 0\ncore id : 0\nflags : lm avx2\n",
    "/proc/meminfo": "MemTotal: 65536000 kB\nMemAvailable: 60000000 kB\n",
    "/proc/modules": "nvidia 56803328 42 nvidia_modeset, Live 0x0 (POE)\n",
    "/proc/locks": "",
    "/proc/sys/kernel/osrelease": KERNEL + "\n",
    "/proc/sys/kernel/random/boot_id": BOOT_ID + "\n",
    "/proc/77/comm": "nvidia-persiste\n",
    "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  " + NEW + "  Thu Jun 12 2026\n",
    "/run/nvidia-persistenced/nvidia-persistenced.pid": "77\n",
    CARD + "/class": "0x030000\n",
    CARD + "/vendor": "0x10de\n",
    CARD + "/device": "0x2206\n",
    CARD + "/driver": "-> ../../../../bus/pci/drivers/nvidia",
    SECURE_BOOT: "\x06\0\0\0\0",
    DKMS + "/nvidia-current.ko": "module",
    "/lib/modules/" + KERNEL + "/build": "-> /usr/src/linux-headers-" + KERNEL,
    "/usr/src/linux-headers-" + KERNEL + "/Makefile": "",
    "/boot/vmlinuz-" + KERNEL: "",
    "/var/lib/dkms/nvidia-current/" + NEW + "/" + KERNEL + "/x86_64/module/nvidia-current.ko": "",
    LIBRARIES + "/libnvidia-ml.so." + NEW: "",
    LIBRARIES + "/libnvidia-ml.so.1": "-> libnvidia-ml.so." + NEW,
    "/usr/bin/nvidia-persistenced": "",
    "/var/lib/dpkg/status": "Package: nvidia-kernel-dkms\nStatus: install ok installed\n",
}
LOADED = {"/proc/modules": "", "/proc/driver/nvidia/version": None}
# What differs; None: the file is not there.
FAULTS = {
    "ready": {},
    # The packages were upgraded, the old module is still loaded.
    "mismatch": {
        "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  " + OLD + "  Thu Mar 6 2025\n"
    },
    "pending-reboot": {"/run/modelfleet-reboot-required": BOOT_ID + "\nthe driver waits for a reboot\n"},
    "held-package": {"/var/lib/dpkg/status": "Package: nvidia-kernel-dkms\nStatus: hold ok installed\n"},
    # The module is there, unsigned, and the kernel has not let it in.
    "secure-boot": {SECURE_BOOT: "\x06\0\0\0\x01", **LOADED},
    # Installed, and never started: nouveau has the card.
    "nouveau": {
        "/proc/modules": "nouveau 3100672 1 - Live 0x0\n",
        "/proc/driver/nvidia/version": None,
        CARD + "/driver": "-> ../../../../bus/pci/drivers/nouveau",
    },
    # DKMS could not build for the kernel that runs now.
    "missing-header": {
        "/lib/modules/" + KERNEL + "/build": None,
        "/lib/modules/" + KERNEL + "/modules.dep": "",
        DKMS + "/nvidia-current.ko": None,
        "/var/lib/dkms/nvidia-current/" + NEW + "/" + KERNEL + "/x86_64/module/nvidia-current.ko": None,
        "/var/lib/dkms/nvidia-current/" + NEW + "/source": "",
        **LOADED,
    },
}


def main() -> None:
    """Write every machine anew."""
    shutil.rmtree(TOP, ignore_errors=True)
    # A machine with a kernel has it; this container has no kernel.
    os.makedirs("/etc/modprobe.d", exist_ok=True)
    for name, changes in FAULTS.items():
        for path, text in {**READY, **changes}.items():
            if text is None:
                continue
            place = TOP + "/" + name + path
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if text.startswith("-> "):
                os.symlink(text[3:], place)
            else:
                with open(place, "w", encoding="utf-8") as stream:
                    stream.write(text)


main()
