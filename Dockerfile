# graph-train in a container. CPU and GPU use the same image: the wheels of OneFlow and DALI contain the CUDA libraries,
# and the host provides the driver.
#
#   docker build -t graph-train .                                    # CPU
#   docker build -t graph-train:cuda --build-arg DEVICE=cuda .       # run with --gpus all
#   docker run --rm --shm-size 2g -v graph-train-cache:/root/.cache -v "$PWD:/work" graph-train \
#       graph-train --data shapes --cfg yolov5n.yaml --imgsz 160
ARG DEVICE=cpu

FROM python:3.10-slim-bookworm AS cpu
# g++ compiles the CPU kernels at the first run; a volume at /root/.cache keeps them. Docker copies the image's files
# in that folder into a new volume, so pip and uv must not leave any.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv
WORKDIR /opt/graph-train
COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY models models
COPY pipelines pipelines
COPY graph_train graph_train
COPY benchmarks benchmarks
# Compile bytecode now, because bytecode written by a container is lost with it.
RUN uv sync --no-cache --no-dev --extra onnx --extra video --compile-bytecode \
    && .venv/bin/python -m compileall -q kernels models pipelines graph_train benchmarks
ENV PATH=/opt/graph-train/.venv/bin:$PATH
WORKDIR /work
CMD ["graph-train", "--help"]

FROM cpu AS cuda
# Settings of NVIDIA's container runtime.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM ${DEVICE}
