"""No text that a tool may print makes a parser raise anything but its own error, and nothing breaks the probe."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet.core.errors import HardwareOutputError
from modelfleet.core.hardware import amd, apple, facts, lsblk, nvidia, nvidia_smi, pci
from modelfleet.core.hardware.probe import probe_sources
from modelfleet.core.hardware.profile import profile_to_dict
from modelfleet.core.hardware.replay import NOWHERE, DirectorySources


def profile_of(outputs: dict[str, str]) -> dict[str, Any]:
    """Return the profile that a directory of pasted outputs shows."""
    return profile_to_dict(probe_sources("/opt/models", DirectorySources(NOWHERE, outputs)))


PARSERS: list[Callable[[str], Any]] = [
    *(nvidia_smi.parse_xml, nvidia_smi.parse_text, nvidia_smi.parse_query, nvidia_smi.parse_list),
    *(nvidia_smi.parse_help, nvidia_smi.parse_version, nvidia.parse_driver_version, nvidia.parse_information),
    *(amd.parse_amd_smi, amd.parse_rocm_smi, amd.parse_properties, amd.target_from_text),
    lsblk.parse_lsblk,
    *(apple.parse_displays, pci.parse_lspci, pci.lspci_displays, facts.find_json),
    *(facts.size, facts.number, facts.whole, facts.generation_of, facts.hexadecimal, facts.pci_address),
    lambda text: amd.parse_names(text, "744c", "c8"),
]
PIECES = st.sampled_from(
    [
        *("<nvidia_smi_log>", "</nvidia_smi_log>", "<gpu id='0:0:0.0'>", "</gpu>", "<mig_device>", "</mig_device>"),
        *("<fb_memory_usage><total>9 MiB</total></fb_memory_usage>", "<uuid>", "&amp;", "&x;", "<![CDATA[", "]]>"),
        *(
            "==============NVSMI LOG==============\n",
            "GPU 00000000:01:00.0\n",
            "    MIG Device\n",
            "        Index : 0\n",
        ),
        *("name, uuid, memory.total [MiB]\n", "A, B, 5 MiB\n", '"', ",", "[N/A]", "GPU 0: A (UUID: GPU-1)\n"),
        *("  MIG 1g.5gb Device 0: (UUID: MIG-1)\n", '{"card0": ', '{"gpu_data": [', '{"asic": ', '"bus": ', '"vram": '),
        *(
            '"VRAM Total Memory (B)": ',
            '"SPDisplaysDataType": ',
            "[",
            "]",
            "{",
            "}",
            ":",
            "null",
            "1e999",
            "NaN",
            "true",
        ),
        *(
            '"size": {"value": 1}',
            '"sppci_model": "x"',
            "Slot:\t01:00.0\n",
            "Class:\tVGA [0300]\n",
            "Vendor:\tA [10de]\n",
        ),
        *(
            "NAME MAJ:MIN ROTA\n",
            "sda disk / sda ext4\n",
            "Device:\tB [2206]\n",
            "0x",
            "٣",
            "²",
            "9" * 400,
            "-1",
            "16.0 GT/s",
            "gfx90a",
            "\n",
            "\0",
            "\ud800",
        ),
    ]
)
DAMAGED = st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=40).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(), DAMAGED))
def test_a_parser_raises_its_own_error_or_none(text: str) -> None:
    for parse in PARSERS:
        try:
            parse(text)
        except HardwareOutputError:
            continue


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    *("gpu_data", "asic", "bus", "vram", "limit", "ppt0", "size", "value", "unit", "max_pcie_width"),
                    *("card0", "system", "PCI Bus", "Card series", "GPU ID", "pcie clock level", "driver", "version"),
                    *("SPDisplaysDataType", "sppci_model", "spdisplays_vendor", "spdisplays_vram", "uuid", "gpu"),
                ]
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(JSON_VALUES)
def test_json_of_any_shape_is_read_or_refused(value: Any) -> None:
    for name in ("amd-smi-static.json", "rocm-smi.json", "system_profiler-SPDisplaysDataType.json"):
        profile_of({name: json.dumps(value)})


@settings(max_examples=100, deadline=None)
@given(DAMAGED)
def test_no_pasted_text_breaks_the_probe(text: str) -> None:
    names = ["nvidia-smi-q-x.xml", "nvidia-smi-query-gpu.csv", "nvidia-smi-L.txt", "lspci-nnmmv.txt", "rocm-smi.json"]
    json.dumps(profile_of(dict.fromkeys(names, text)))
    json.dumps(profile_of({"nvidia-smi-q.txt": text, "sysctl.txt": text, "lsblk.txt": text}))
    json.dumps(profile_of(dict.fromkeys(["nvidia-smi.txt", "sw_vers.txt"], text)))
