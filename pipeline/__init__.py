"""Commands, configuration, workspace, demo and report: what connects the stages."""
