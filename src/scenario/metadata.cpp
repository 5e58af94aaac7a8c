#include <shunt/scenario/generate.h>

namespace shunt::scenario {

std::string_view metadata_script() {
  // Every key is written on every node: readers of these files ignore one that lacks a key.
  return R"sh(#!/bin/bash
# What this node is, as TOML. Keys are those of CloudAI; what is not known is "null".
say() {
  local value=$2
  value=${value//\\/}
  value=${value//\"/}
  printf '%s = "%s"\n' "$1" "${value:-null}"
}
first() { "$@" 2>/dev/null | head -n 1; }
release() { (. /etc/os-release 2>/dev/null && echo "${!1}"); }
cpu() { lscpu 2>/dev/null | sed -n "s/^$1: *//p" | head -n 1; }
gpu() { first nvidia-smi --query-gpu="$1" --format=csv,noheader; }

say user "${USER:-$(id -un)}"
printf '\n[system]\n'
say os_type "$(release ID)"
say os_version "$(release VERSION)"
say linux_kernel_version "$(uname -r)"
say gpu_arch_type "$(gpu name)"
say cpu_model_name "$(cpu 'Model name')"
say cpu_arch_type "$(uname -m)"
printf '\n[mpi]\n'
version=$(first mpirun --version)
case $version in *"Open MPI"*) say mpi_type openmpi ;; *) say mpi_type "" ;; esac
say mpi_version "$(echo "$version" | sed -n 's/.*Open MPI) *//p')"
say hpcx_version "${HPCX_DIR##*/}"
printf '\n[cuda]\n'
say cuda_build_version "$CUDA_BUILD_VERSION"
say cuda_runtime_version "$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9.]*\).*/\1/p' | head -n 1)"
say cuda_driver_version "$(gpu driver_version)"
printf '\n[network]\n'
say nics "$(lspci 2>/dev/null | sed -n 's/.*\(Ethernet\|Infiniband\) controller: //p' | head -n 1)"
say switch_type "$SWITCH"
say network_name "$NETWORK"
say mofed_version "$(first ofed_info -s | tr -d :)"
say libfabric_version "$(fi_info --version 2>/dev/null | sed -n 's/^libfabric: *//p')"
printf '\n[nccl]\n'
say version "$NCCL_VERSION"
say commit_sha "$NCCL_COMMIT_SHA"
printf '\n[slurm]\n'
say cluster_name "$SLURM_CLUSTER_NAME"
say node_list "$SLURM_NODELIST"
say num_nodes "$SLURM_NNODES"
say ntasks_per_node "$SLURM_NTASKS_PER_NODE"
say ntasks "$SLURM_NTASKS"
say job_id "$SLURM_JOBID"
)sh";
}

}  // namespace shunt::scenario
