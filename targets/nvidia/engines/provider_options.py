"""Options of ONNX Runtime's providers for NVIDIA GPUs, checked without the provider.

A provider refuses an option that it does not know when the session is made: on the user's machine, not here.
Addresses in memory, which only a running program has, are left out.

Sources: onnxruntime.ai/docs/execution-providers, pages CUDA and TensorRT, and the readers of options in ONNX
Runtime's providers and Python binding; nvidia.github.io/TensorRT-RTX-EP-ABI, page Provider options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from graphcompress.errors import UsageError, nearest

_FLAG, _SWITCH, _NUMBER, _TEXT = "0 or 1", "True or False", "a whole number", "a text"
_SHAPES, _BUDGET = "input:1x8x…,input:…", "-1, bytes such as 512M, or a share such as 50%"
_ON_OR_OFF = re.compile(r"[01]|[Tt]rue|[Ff]alse")
_PATTERNS = {
    _FLAG: _ON_OR_OFF,
    _SWITCH: _ON_OR_OFF,
    _NUMBER: re.compile(r"-?\d+"),
    _TEXT: re.compile(r".+"),
    _SHAPES: re.compile(r"[^,:]+:\d+(x\d+)*(,[^,:]+:\d+(x\d+)*)*"),
    _BUDGET: re.compile(r"-1|\d+[BKMG]?|(100|\d?\d)%"),
}
_ON = ("1", "True", "true")
_WRITTEN = {_FLAG: ("0", "1"), _SWITCH: ("False", "True")}
"""Off and on as the provider reads it: that of TensorRT takes no digits from Python, and then falls back."""


def _table(**kinds: str) -> dict[str, str]:
    """Name → what its value is, from the names of each kind."""
    words = {
        "flags": _FLAG,
        "switches": _SWITCH,
        "numbers": _NUMBER,
        "texts": _TEXT,
        "shapes": _SHAPES,
        "budgets": _BUDGET,
    }
    return {name: words[kind] for kind, names in kinds.items() for name in names.split()}


KNOWN: Mapping[str, Mapping[str, str]] = {
    "CUDAExecutionProvider": {
        **_table(
            flags="do_copy_in_default_stream use_ep_level_unified_stream cudnn_conv_use_max_workspace "
            "cudnn_conv1d_pad_to_nc1d enable_cuda_graph enable_skip_layer_norm_strict_mode use_tf32 "
            "prefer_nhwc fuse_conv_bias tunable_op_enable tunable_op_tuning_enable",
            numbers="device_id gpu_mem_limit tunable_op_max_tuning_duration_ms sdpa_kernel",
        ),
        "arena_extend_strategy": "kNextPowerOfTwo or kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE, HEURISTIC or DEFAULT",
    },
    "TensorrtExecutionProvider": _table(
        switches="trt_fp16_enable trt_bf16_enable trt_int8_enable trt_int8_use_native_calibration_table "
        "trt_dla_enable trt_engine_cache_enable trt_dump_subgraphs trt_force_sequential_engine_build "
        "trt_context_memory_sharing_enable trt_layer_norm_fp32_fallback trt_timing_cache_enable "
        "trt_force_timing_cache trt_detailed_build_log trt_build_heuristics_enable trt_cuda_graph_enable "
        "trt_sparsity_enable trt_engine_hw_compatible trt_weight_stripped_engine_enable "
        "trt_dump_ep_context_model trt_load_user_initializer trt_engine_decryption_enable",
        numbers="device_id trt_max_workspace_size trt_max_partition_iterations trt_min_subgraph_size "
        "trt_dla_core trt_builder_optimization_level trt_auxiliary_streams trt_ep_context_embed_mode",
        texts="trt_int8_calibration_table_name trt_engine_cache_path trt_engine_cache_prefix "
        "trt_timing_cache_path trt_tactic_sources trt_extra_plugin_lib_paths trt_onnx_model_folder_path "
        "trt_engine_decryption_lib_path "
        "trt_ep_context_file_path trt_op_types_to_exclude trt_preview_features",
        shapes="trt_profile_min_shapes trt_profile_opt_shapes trt_profile_max_shapes",
    ),
    "NvTensorRTRTXExecutionProvider": _table(
        flags="nv_dump_subgraphs nv_detailed_build_log nv_multi_profile_enable enable_cuda_graph "
        "nv_use_external_data_initializer nv_enable_profiling nv_use_sync_gpu_allocator "
        "nv_persistent_context_memory nv_weight_stripped_engine_enable_experimental",
        numbers="device_id nv_max_workspace_size nv_max_shared_mem_size nv_multi_rotary_cache_concat_offset",
        texts="nv_runtime_cache_path nv_op_types_to_exclude nv_profiling_output_file",
        budgets="nv_weight_streaming_budget",
        shapes="nv_profile_min_shapes nv_profile_opt_shapes nv_profile_max_shapes",
    ),
}
"""Provider → option → what its value is."""


def parse_options(text: str, provider: str) -> dict[str, str]:
    """Read ``use_tf32=1;gpu_mem_limit=2000000000`` as options of ``provider``, as it reads them.

    Raises:
        UsageError: another form, an option that the provider does not have, or a value that it does not take.
    """
    pairs = [part.strip().partition("=") for part in text.split(";") if part.strip()]
    for name, equals, _ in pairs:
        if not equals:
            raise UsageError(f"options={text!r}: expected name=value, joined by ; (in {name!r})")
    found = {name.strip(): value.strip() for name, _, value in pairs}
    return checked_options(found, provider)


def checked_options(options: Mapping[str, str], provider: str) -> dict[str, str]:
    """``options`` as ``provider`` reads them.

    Raises:
        UsageError: it does not take one of them; the message names it and what would be right.
    """
    known = KNOWN[provider]
    for name, value in options.items():
        kind = known.get(name)
        if kind is None:
            raise UsageError(f"{provider} has no option {name!r}: {nearest(name, known)}")
        if not _fits(value, kind):
            raise UsageError(f"{provider}: the option {name} is {kind}, got {value!r}")
    return {name: _written(value, known[name]) for name, value in options.items()}


def _written(value: str, kind: str) -> str:
    return _WRITTEN[kind][value in _ON] if kind in _WRITTEN else value


def _fits(value: str, kind: str) -> bool:
    pattern = _PATTERNS.get(kind)
    if pattern is not None:
        return pattern.fullmatch(value) is not None
    return value in re.split(r", | or ", kind)
