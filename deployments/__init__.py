"""Where it runs: command line, embedded server, prefect.yaml, work-pool templates, Dockerfile."""
