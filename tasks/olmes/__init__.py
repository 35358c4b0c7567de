"""OLMES on lm-eval: the evaluation tasks of the OLMo 2 report (section 2.5, appendix A), their requests and their scores.

`definitions` says what the tasks are, `data` reads their files and takes the subsets, `requests` writes them as tasks of lm-eval, `scoring`
turns log-likelihoods and texts into scores, and `run` puts a model through lm-eval.
"""
