"""Runs many seeds at many settings: plans, trains, checkpoints, resumes and collects them."""
