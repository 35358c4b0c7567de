from tests.trainer.conftest import make_config, make_documents, make_mix, model_dict, rank_server, run_ranks  # noqa: F401
