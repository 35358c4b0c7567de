#!/bin/bash
# The shards of a plan as an array: task N of the array makes those of rank N.
{% for option in options %}
#SBATCH {{ option | option }}
{% endfor %}
#SBATCH --nodes=1 --ntasks=1 --requeue
#SBATCH --open-mode=append
{% for line in setup %}
{{ line }}
{% endfor %}
code={{ folder | quote }}/code-$SLURM_ARRAY_TASK_ID
rm -f "$code"
{{ python | quote }} -m tasks.heartbeat {{ heartbeat | quote }} {{ alone_seconds }} {{ threads }} \
    {{ python | quote }} -m tasks.shard {{ plan | quote }} "$SLURM_ARRAY_TASK_ID"
ended=$?
echo $ended > "$code.partial" && mv "$code.partial" "$code"
exit $ended
