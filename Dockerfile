# graph-train in a container. One image serves both: OneFlow's and DALI's wheels bring their CUDA libraries, the driver
# comes from the host.
#
#   docker build -t graph-train .                                    # CPU
#   docker build -t graph-train:cuda --build-arg DEVICE=cuda .       # run with --gpus all
#   docker run --rm --shm-size 2g -v graph-train-cache:/root/.cache -v "$PWD:/work" graph-train \
#       graph-train --data shapes --cfg yolov5n.yaml --imgsz 160
ARG DEVICE=cpu

FROM python:3.10-slim-bookworm AS cpu
# g++ compiles the CPU kernels at the first run; a volume at /root/.cache keeps them. Docker copies what the image has
# there into a new volume, so pip and uv must leave nothing.
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
# Containers are new each time: what Python compiles at a start would be lost.
RUN uv sync --no-cache --no-dev --extra onnx --extra video --compile-bytecode \
    && .venv/bin/python -m compileall -q kernels models pipelines graph_train benchmarks
ENV PATH=/opt/graph-train/.venv/bin:$PATH
WORKDIR /work
CMD ["graph-train", "--help"]

FROM cpu AS cuda
# What NVIDIA's container runtime makes visible.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM ${DEVICE}
