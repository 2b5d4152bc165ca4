"""Ideas of others as files outside the package, a page each; docs/extending.md lists them.

cd experiments
purejaxdqn train --import recipes.hl_gauss --agent hl_gauss --num-seeds 10
"""
