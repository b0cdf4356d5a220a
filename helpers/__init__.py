"""The plumbing under the notebooks; each module carries one idea.

| module | the one idea |
|---|---|
| parameters | names, types and ranges of the parameters, the same everywhere |
| checkpoints | where a model comes from: embedded, a folder, or the Hub at a pinned revision |
| data | where a data set comes from; columns and labels checked before any work |
| fill_mask | the most likely words at each mask, computed only there |
| tasks | classification, tagging, answering: encode, decode, score |
| training | one Trainer for the three; also `python -m helpers.training` |
| dropout | torch's dropout on a processor, its random numbers drawn in bulk |
| onednn | linear layers through oneDNN on a processor: training, answers |
| memory | what the C library does with memory that is free: training, batches |
| evaluation | how good the filled masks are, with intervals |
| pretraining | masked-LM training and distillation; also `python -m helpers.pretraining` |
| contract | the wire format: parse, validate, answer; the swagger files |
| serving | the local inference server as a context manager |
| report | metrics.json, MLflow where it is configured, one house style of plots |
| runner | notebooks executed with papermill: `make run` |
| workspace | Azure ML: client, jobs, endpoints that delete themselves |

Importing this package imports none of them.
"""
