"""Ideas of others as files outside the package, a page each; docs/extending.md lists them.

cd experiments
purejaxdqn train --import recipes.minto --agent minto_recipe --num-seeds 10
"""
