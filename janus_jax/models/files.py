"""Names of the files and directories that a model is kept in: for `conversion`, which opens them, and for `training`.

A checkpoint directory holds CONFIG_FILE, PARAMS_DIRECTORY and the tokenizer files (tokenizer.json, ...). A training
workdir holds the same, except that the parameters are in CHECKPOINTS_DIRECTORY/<step>/PARAMS_DIRECTORY, for each
checkpoint beside the rest of its state in TRAIN_DIRECTORY, and that RUN_CONFIG_FILE says how the run was configured. An
adapter, and the workdir of a run with LoRA, hold only what is not their base's, which ADAPTER_FILE names.
"""

CONFIG_FILE = 'janus_config.json'
PARAMS_DIRECTORY = 'params'
TRAIN_DIRECTORY = 'train'
CHECKPOINTS_DIRECTORY = 'checkpoints'
RUN_CONFIG_FILE = 'config.json'
METADATA_FILE = '_CHECKPOINT_METADATA'  # Of a checkpoint; Orbax's name and format.
ADAPTER_FILE = 'janus_adapter.json'
