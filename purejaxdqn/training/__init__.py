"""What training runs are made of: settings, the loop, the learner, acting, evaluation.

Everything here serves every agent: nothing may know one, or read a setting of one alone.
"""
