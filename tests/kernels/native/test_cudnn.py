"""Our cuDNN declarations match its wheel: constants and struct layouts, functions, output sizes."""

import ctypes
import json
import shutil
import subprocess
from pathlib import Path

import nvidia.cudnn
import pytest

from kernels.build.plugin_build import find_toolchain
from kernels.plugin import load_plugin, plugin_library
from kernels.runtime import newer_cudnn
from tests.kernels.ops.convolution_reference import CASES, Case
from tests.python_process import run_python

_COMPARISON = """
#include "native/cuda/cudnn.h"
#include <cudnn.h>
#define SAME(ours, theirs) static_assert(static_cast<int>(graph_train::cudnn::ours) == static_cast<int>(theirs))
SAME(DataType::kFloat, CUDNN_DATA_FLOAT);
SAME(DataType::kHalf, CUDNN_DATA_HALF);
SAME(DataType::kBfloat16, CUDNN_DATA_BFLOAT16);
SAME(Format::kChannelsLast, CUDNN_TENSOR_NHWC);
SAME(Mode::kCrossCorrelation, CUDNN_CROSS_CORRELATION);
SAME(Math::kDefault, CUDNN_DEFAULT_MATH);
SAME(Math::kTensorCores, CUDNN_TENSOR_OP_MATH);
SAME(Math::kTensorCoresAllowConversion, CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION);
SAME(Math::kFusedMultiplyAdd, CUDNN_FMA_MATH);
static_assert(CUDNN_STATUS_SUCCESS == 0 && CUDNN_NON_DETERMINISTIC == 0 && CUDNN_DETERMINISTIC == 1);
using Ours = graph_train::cudnn::Performance;
template<typename Theirs>
constexpr bool alike() {
  return sizeof(Ours) == sizeof(Theirs) && offsetof(Ours, algorithm) == offsetof(Theirs, algo)
         && offsetof(Ours, status) == offsetof(Theirs, status) && offsetof(Ours, memory) == offsetof(Theirs, memory)
         && offsetof(Ours, deterministic) == offsetof(Theirs, determinism)
         && offsetof(Ours, math) == offsetof(Theirs, mathType);
}
static_assert(alike<cudnnConvolutionFwdAlgoPerf_t>() && alike<cudnnConvolutionBwdDataAlgoPerf_t>()
              && alike<cudnnConvolutionBwdFilterAlgoPerf_t>());
// The order of arguments, as ours are called.
void call(cudnnHandle_t h, cudnnTensorDescriptor_t t, cudnnFilterDescriptor_t f, cudnnConvolutionDescriptor_t c) {
  int n = 0;
  size_t bytes;
  float alpha = 1, beta = 0;
  void *x = nullptr, *y = nullptr;
  const auto nhwc = CUDNN_TENSOR_NHWC;
  const auto type = CUDNN_DATA_FLOAT;
  cudnnSetTensor4dDescriptor(t, nhwc, type, n, n, n, n);
  cudnnSetFilter4dDescriptor(f, type, nhwc, n, n, n, n);
  cudnnSetConvolution2dDescriptor(c, n, n, n, n, n, n, CUDNN_CROSS_CORRELATION, type);
  cudnnGetConvolution2dForwardOutputDim(c, t, f, &n, &n, &n, &n);
  cudnnConvolutionFwdAlgoPerf_t forward;
  cudnnGetConvolutionForwardAlgorithm_v7(h, t, f, c, t, n, &n, &forward);
  cudnnGetConvolutionForwardWorkspaceSize(h, t, f, c, t, forward.algo, &bytes);
  cudnnConvolutionForward(h, &alpha, t, x, f, x, c, forward.algo, x, bytes, &beta, t, y);
  cudnnConvolutionBwdDataAlgoPerf_t data;
  cudnnGetConvolutionBackwardDataAlgorithm_v7(h, f, t, c, t, n, &n, &data);
  cudnnGetConvolutionBackwardDataWorkspaceSize(h, f, t, c, t, data.algo, &bytes);
  cudnnConvolutionBackwardData(h, &alpha, f, x, t, x, c, data.algo, x, bytes, &beta, t, y);
  cudnnConvolutionBwdFilterAlgoPerf_t filter;
  cudnnGetConvolutionBackwardFilterAlgorithm_v7(h, t, t, c, f, n, &n, &filter);
  cudnnGetConvolutionBackwardFilterWorkspaceSize(h, t, t, c, f, filter.algo, &bytes);
  cudnnConvolutionBackwardFilter(h, &alpha, t, x, t, x, c, filter.algo, x, bytes, &beta, f, y);
}
"""
_RUNTIME = """
#pragma once
typedef struct CUstream_st* cudaStream_t;

"""


def test_declarations_match_headers(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    headers = Path(next(iter(nvidia.cudnn.__path__))) / "include"
    (tmp_path / "cuda_runtime.h").write_text(_RUNTIME)
    (tmp_path / "driver_types.h").write_text(_RUNTIME)
    (tmp_path / "comparison.cpp").write_text(_COMPARISON)
    toolchain = find_toolchain()
    flags = ["-std=c++17", "-fopenmp", "-D_GLIBCXX_USE_CXX11_ABI=0", "-DHALF_ENABLE_CPP11_USER_LITERALS=0"]
    command = [
        str(toolchain.compiler),
        *flags,
        "-fsyntax-only",
        *toolchain.include_flags(),
        f"-I{tmp_path}",
        f"-I{headers}",
    ]
    result = subprocess.run([*command, str(tmp_path / "comparison.cpp")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def _sizes(case: Case) -> list[int]:
    """Return the fields of `ConvolutionShape`, with output sizes computed by cuDNN."""
    channels, height_width = case.channels, case.size
    sizes = [case.batch, channels[0], *height_width, channels[1], 0, 0, *case.kernel, *case.stride, *case.padding]
    return [*sizes, *case.dilation, case.groups, 1, 1, 0]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("data_type", [0, 2, 9])
def test_output_size_matches_cudnn(case: Case, data_type: int) -> None:
    """Use the installed library; its descriptors need no GPU."""
    load_plugin("require")
    sizes, output = _sizes(case), (ctypes.c_int * 4)()
    plugin_library().graph_train_cudnn_output_size((ctypes.c_int64 * len(sizes))(*sizes), data_type, output)
    assert list(output) == [case.batch, case.channels[1], *case.output_size()]


_NEWER = """
import ctypes, json, sys
from kernels.plugin import load_plugin, plugin_library
from kernels.runtime import newer_cudnn
load_plugin("require")
plugin_library().graph_train_cudnn_use(sys.argv[1].encode())
output = (ctypes.c_int * 4)()
for sizes in json.loads(sys.argv[2]):
    plugin_library().graph_train_cudnn_output_size((ctypes.c_int64 * len(sizes))(*sizes), 0, output)
    print(*output)
"""


def test_newer_cudnn_works_beside_oneflows() -> None:
    path = newer_cudnn()
    if path is None:
        pytest.skip("the extra blackwell is not installed")
    done = run_python("-c", _NEWER, str(path), json.dumps([_sizes(case) for case in CASES.values()]), check=True)
    expected = [[case.batch, case.channels[1], *case.output_size()] for case in CASES.values()]
    assert [[int(number) for number in line.split()] for line in done.stdout.splitlines()] == expected
