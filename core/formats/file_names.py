"""Names of the files in a checkpoint directory."""

from __future__ import annotations

# Hugging Face: a model
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"  # tensor name to file name, where the weights are in several files
TOKENIZER_NAME = "tokenizer.json"
MODEL_CARD_NAME = "README.md"
GENERATION_CONFIG_NAME = "generation_config.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
TEMPLATES_FOLDER = "additional_chat_templates"  # named chat templates, one file each

# PEFT: an adapter
ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"

# Eigenmerge: what a merge adds
MANIFEST_NAME = "eigenmerge_manifest.json"
REPORT_NAME = "eigenmerge_report.html"  # `eigenmerge merge --no-report` writes none
MARKER_NAME = ".eigenmerge-incomplete.json"  # present while a merge writes to the directory
