"""What training runs are made of: settings, the loop, the learner, acting, evaluation."""
