# The study in a container, as a user of its own; `docker run` without a command is the demo.
#   docker build --tag dmsmil .                                  for the CPU; --build-arg USER_ID=$(id -u) writes as you
#   docker build --build-arg DEVICE=cuda --tag dmsmil:cuda .     for NVIDIA: docker run --gpus all ...
#   docker run --rm --volume "$PWD/outputs:/dmsmil/outputs" dmsmil
#   docker run --rm --volume "$PWD/outputs:/dmsmil/outputs" dmsmil dmsmil check params/smoke.yaml
ARG PYTHON=3.11
FROM python:${PYTHON}-slim
ARG DEVICE=cpu
ARG USER_ID=1000

# uv knows where torch's wheels without CUDA are; pip must be told
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /dmsmil
COPY requirements.lock .
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN case "$DEVICE" in \
      cpu) grep -vE '^(nvidia-|cuda-|triton=)' requirements.lock > wanted.txt \
           && uv pip install --system --no-cache --torch-backend cpu --requirement wanted.txt && rm wanted.txt ;; \
      cuda) uv pip install --system --no-cache --requirement requirements.lock ;; \
      *) echo "DEVICE is cpu or cuda, not '$DEVICE'" >&2 && exit 2 ;; \
    esac

COPY . .
RUN uv pip install --system --no-cache --no-deps --editable . \
    && useradd --uid "$USER_ID" --create-home dmsmil \
    && chown dmsmil . outputs
USER $USER_ID
CMD ["dmsmil", "run", "params/demo.yaml"]
