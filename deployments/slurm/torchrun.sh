#!/bin/bash
# A GPU job: one torchrun a node. Ranks are ordered by node, and nodes as Slurm orders them: the node with SLURM_NODEID n has the ranks from
# n * processes on, one a GPU in the order of its GPUs. So neighbouring ranks, which share a copy of the model, share a node where they can.
{% for option in options %}
#SBATCH {{ option | option }}
{% endfor %}
#SBATCH --nodes={{ nodes }} --ntasks-per-node=1 --cpus-per-task={{ cpus }} --requeue
#SBATCH --open-mode=append
{% for line in setup %}
{{ line }}
{% endfor %}
code={{ code | quote }}
rm -f "$code"
{% if torchrun %}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OLMOFLOW_ADDRESS=$(scontrol show node "$first" --oneliner | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
# This script runs on the first node, where the ranks will meet.
export OLMOFLOW_PORT=$({{ python | quote }} -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
{% endif %}
srun --nodes={{ nodes }} --ntasks={{ nodes }} --ntasks-per-node=1 --cpus-per-task={{ cpus }} --kill-on-bad-exit=1 bash -c '
exec "$@"{% if torchrun %} --node-rank="$SLURM_NODEID" --master-addr="$OLMOFLOW_ADDRESS" --master-port="$OLMOFLOW_PORT" -m {{ module }} "$0"{% endif %}
' {{ config | quote }} {{ python | quote }} -m tasks.heartbeat {{ heartbeat | quote }} {{ alone_seconds }} {{ threads }} \
{% if torchrun %}
    {{ python | quote }} -m torch.distributed.run --nnodes={{ nodes }} --nproc-per-node={{ processes }}
{% else %}
    {{ python | quote }} -m {{ module }} {{ config | quote }}
{% endif %}
ended=$?
echo $ended > "$code.partial" && mv "$code.partial" "$code"
exit $ended
