"""The walk through the stages: command line, settings, workspace, demo and report."""
