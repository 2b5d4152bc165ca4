# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Deep Q-learning on CartPole, step by step
#
# A pole stands on a cart, and a program learns to keep it upright by pushing the cart left and
# right. This page builds the agent of many first tutorials out of the package's parts: the game, a
# memory, a network, exploration, and learning. No knowledge of JAX is needed; three things help:
#
# - **Functions are pure.** Nothing is changed in place: a step takes a state and returns the next.
# - **Randomness has a key.** Each key is used once, and the same keys give the same page.
# - **`jax.jit` compiles** a function, and **`jax.vmap`** turns a function of one thing into a
#   function of a batch of things.
#
# Run it as a script (`python experiments/walkthrough.py`) or as a notebook (`make notebook`).

# %%
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from purejaxdqn import environments
from purejaxdqn.agents.dqn.dqn import make_learner, periodic_target_update
from purejaxdqn.agents.presets import TUTORIAL
from purejaxdqn.losses import bellman_loss, masked_squared_error, q_learning
from purejaxdqn.networks import MLP, make_network
from purejaxdqn.replay import n_step_transition, uniform_replay
from purejaxdqn.training.exploration import epsilon_greedy, multiplicative_schedule
from purejaxdqn.types import Step

print("JAX", jax.__version__)
keys = iter(jax.random.split(jax.random.key(0), 1_000))  # next(keys): a key that nobody has used

# %% [markdown]
# ## The environment
#
# What can be seen of the game, and what can be done in it. An observation is four numbers: where
# the cart is, how fast it moves, the angle of the pole, and how fast that changes. A game ends
# when the pole leans by more than 12 degrees, when the cart leaves the track, or after 200 steps.

# %%
env = environments.make("CartPole-v0")
print("Observation space:", env.observation_space)
print("Shape of an observation:", env.observation_space.shape)
print("Action space:", env.action_space)
print("Number of actions:", env.num_actions)

# %% [markdown]
# Each game starts a little differently: all four numbers are drawn between -0.05 and 0.05.

# %%
reset, step = jax.jit(env.reset), jax.jit(env.step)
for _ in range(3):
    _, obs = reset(next(keys))
    print("Reset:", np.round(obs, 3))

# %% [markdown]
# A step takes the state of the game and an action (0 pushes left, 1 pushes right), and returns the
# next state and what the player is told: the observation, a reward of 1, and whether the game
# ended.

# %%
LEFT, RIGHT = 0, 1


def show(n, timestep):
    x, v, a, pv = timestep.obs
    r = timestep.reward
    print(
        f"Step {n} - Cart X: {x:.3f}, Cart V: {v:.3f}, Pole A: {a:.3f}, Pole V:{pv:.3f}, "
        f"Reward: {r}"
    )


def is_over(timestep):
    return bool(timestep.terminated | timestep.truncated)


state, obs = reset(next(keys))
state, timestep = step(next(keys), state, LEFT)
show(1, timestep)
print("The Game is over." if is_over(timestep) else "The game can continue")

# %% [markdown]
# Pushing right again and again tips the pole over to the left.

# %%
n = 1
while not is_over(timestep):
    n += 1
    state, timestep = step(next(keys), state, RIGHT)
    show(n, timestep)

# %% [markdown]
# Left and right in turn does better, but not for long: nobody looks at the pole. What happened in
# this game is kept, because the memory below is filled with it. Beside the two ways in which a
# game can end, a memory needs the observation *after* each action, also the last one.

# %%
game = []
state, obs = reset(next(keys))
for n in range(env.max_steps):
    action = LEFT if n % 2 == 0 else RIGHT
    state, timestep = step(next(keys), state, action)
    game.append((obs, action, timestep))
    obs = timestep.obs
    if timestep.terminated:
        print(f"Game over! Score = {float(n + 1)}")
        break
else:
    print(f"Ran out of actions! Score = {float(env.max_steps)}")

# %% [markdown]
# ## The memory
#
# Steps that follow each other are alike, and a network that is shown only those forgets the rest.
# So they go into a memory, and are learned from in random order. The memory is a ring: once it is
# full, the newest entry takes the oldest one's place. This one holds 20 transitions and hands out
# 4.

# %%
MEMORY_SIZE, BATCH_SIZE = 20, 4
GAMMA = TUTORIAL.discount


def as_step(obs, action, timestep):
    """What a memory is given: a row of one environment."""
    return Step(
        obs=obs[None],
        action=jnp.array([action], jnp.int32),
        reward=timestep.reward[None],
        terminated=timestep.terminated[None],
        truncated=timestep.truncated[None],
        next_obs=timestep.obs[None],
    )


replay = uniform_replay(MEMORY_SIZE, BATCH_SIZE, time_limit=env.max_steps, with_replacement=False)
memory = replay.init(as_step(*game[0]))
for played in game[: BATCH_SIZE - 1]:
    memory = replay.add(memory, as_step(*played))

# %% [markdown]
# Asked too early, it says so. (Inside a compiled training run the numbers are not known in
# advance; there the settings are checked instead: the first games are played at random until there
# is a batch.)

# %%
try:
    replay.sample(memory, next(keys))
except ValueError as error:
    print("Refused:", error)

# %%
for played in game[BATCH_SIZE - 1 :]:
    memory = replay.add(memory, as_step(*played))
first_is_there = bool((memory.obs == game[0][0]).all(axis=-1).any())
print(f"{len(game)} steps were played, {int(memory.num_rows)} are remembered.")
print(f"Is the first observation still there? {'Yes' if first_is_there else 'No'}.")

# %% [markdown]
# Batches are drawn uniformly and without replacement: no transition is in a batch twice.

# %%
for _ in range(3):
    sample = replay.sample(memory, next(keys))
    print("Entries", sample.indices, "with actions", sample.window.action[:, 0])


def to_transitions(sample):
    """The memory holds what happened; the discount enters here."""
    return jax.vmap(n_step_transition, in_axes=(0, None))(sample.window, GAMMA)


for name, value in to_transitions(sample)._asdict().items():
    print(f"{name:10} {value.dtype}{list(value.shape)}")

# %% [markdown]
# The names are those of the literature: `obs_tm1` and `a_tm1` are what was seen and done at time t
# - 1, `r_t` and `obs_t` what came of it, and `discount_t` is gamma, or 0 if the game was lost
# there.
#
# Drawing without replacement need not shuffle the whole memory. Here only what is drawn is
# shuffled, so that a memory of a million costs no more than one of a thousand.

# %%
for capacity in (1_000, 1_000_000):
    large = uniform_replay(capacity, 32, env.max_steps, with_replacement=False)
    full = large.init(as_step(*game[0])).replace(num_rows=jnp.int32(capacity))
    draw = jax.jit(large.sample)
    jax.block_until_ready(draw(full, next(keys)))  # the first call compiles
    start = time.perf_counter()
    for _ in range(50):
        drawn = jax.block_until_ready(draw(full, next(keys)))
    microseconds = (time.perf_counter() - start) / 50 * 1e6
    distinct = len(set(drawn.indices.tolist()))
    print(f"{capacity:>9,} entries: {distinct} different ones in {microseconds:.0f} microseconds")

# %% [markdown]
# ## The network
#
# Two hidden layers with ReLU and a linear output: one number per action, the discounted reward
# that is still to come if this action is taken now.

# %%
WIDTH = 10
network = make_network(MLP((WIDTH, WIDTH), env.num_actions))
params = network.init(next(keys), obs)
print("Action values:", network.apply(params, obs))

# %% [markdown]
# Only the action that was taken has a target. Many tutorials see to that with a mask: outputs and
# targets are multiplied by 1 for the action taken and by 0 for all others, and the mean square
# error runs over all of them. Picking the one value and squaring its error is the same, up to a
# factor: the mean over `A` outputs divides by `A`, while the usual loss has a half in front. Loss
# and gradients of the first are 2 / A times those of the second.

# %%
batch = to_transitions(replay.sample(memory, next(keys)))
targets = jnp.array([1.0, 2.0, 3.0, 4.0])  # any
outputs = jax.vmap(network.apply, in_axes=(None, 0))


def masked_loss(params):
    mask = jax.nn.one_hot(batch.a_tm1, env.num_actions)
    return jnp.mean(jnp.square(outputs(params, batch.obs_tm1) * mask - targets[:, None] * mask))


def picked_loss(params):
    picked = jax.vmap(lambda q, a: q[a])(outputs(params, batch.obs_tm1), batch.a_tm1)
    return jnp.mean(0.5 * jnp.square(picked - targets))


def packages_loss(params):
    """The package's loss for the same targets: the reward alone counts, as after a lost game."""
    loss_fn = bellman_loss(q_learning, masked_squared_error(env.num_actions))
    lost = batch._replace(r_t=targets, discount_t=jnp.zeros(BATCH_SIZE))
    over_batch = jax.vmap(loss_fn, in_axes=(None, None, None, 0, 0))
    return over_batch(network, params, params, lost, loss_keys).loss.mean()


def largest_difference(gradient, other, factor):
    """Between the entries of a gradient and those of another one times a factor."""
    pairs = zip(*map(jax.tree.leaves, (gradient, other)), strict=True)
    return max(float(jnp.abs(one - factor * two).max()) for one, two in pairs)


loss_keys = jax.random.split(next(keys), BATCH_SIZE)
factor = 2 / env.num_actions
masked, masked_gradient = jax.value_and_grad(masked_loss)(params)
picked, picked_gradient = jax.value_and_grad(picked_loss)(params)
packages, packages_gradient = jax.value_and_grad(packages_loss)(params)
print(f"Loss with a mask {masked:.6f}, {factor:g} times that of the picked {factor * picked:.6f}")
print(f"The package's {packages:.6f}")
to_picked = largest_difference(masked_gradient, picked_gradient, factor)
to_packages = largest_difference(masked_gradient, packages_gradient, 1)
print(f"Largest differences between gradients: {to_picked:.1e} and {to_packages:.1e}")
assert np.isclose(masked, factor * picked, rtol=1e-5)
assert np.isclose(masked, packages, rtol=1e-5)
assert max(to_picked, to_packages) < 1e-5

# %% [markdown]
# ## Exploration
#
# An agent that always does what it thinks best never finds out better. So with probability epsilon
# it acts at random. Epsilon stays at 1 until the memory holds a batch (nothing has been learned
# before), and is then multiplied by a decay at each action. With a decay of 0.95 the random
# actions soon give way to those of a network that knows nothing yet.

# %%
DECAY = 0.95
epsilon = multiplicative_schedule(1.0, DECAY)

state, obs = reset(next(keys))
for n in range(40):
    # n steps are in the memory; with less than a batch it stays 1.
    probability = epsilon(jnp.int32(n - BATCH_SIZE))
    explores = bool(jax.random.uniform(next(keys)) < probability)
    chosen = epsilon_greedy(next(keys), network.apply(params, obs), 1.0 if explores else 0.0)
    push = "Push Left" if chosen == LEFT else "Push Right"
    print("Exploration!" if explores else "Exploitation!", push)
    state, timestep = step(next(keys), state, chosen)
    obs = timestep.obs
    if is_over(timestep):
        print(f"Game over after {n + 1} steps, with epsilon at {probability:.2f}")
        break

# %% [markdown]
# ## Learning
#
# What should the value of an action be? The reward that it brought, plus what the best action is
# worth from there, discounted by gamma: the Bellman target. Where the game was lost, nothing comes
# after, and the target is the reward alone. By hand, for a batch that holds the last step of the
# game above:

# %%
everything = jax.vmap(lambda key: to_transitions(replay.sample(memory, key)))(
    jax.random.split(next(keys), 50)
)
everything = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), everything)
last = int(jnp.argmin(everything.discount_t))  # where the game was lost
rows = (last + jnp.arange(BATCH_SIZE)) % len(everything.r_t)
batch = jax.tree.map(lambda x: x[rows], everything)

q_tm1 = outputs(params, batch.obs_tm1)
q_t = outputs(params, batch.obs_t)
for i in range(BATCH_SIZE):
    reward, best = float(batch.r_t[i]), float(q_t[i].max())
    lost = float(batch.discount_t[i]) == 0
    by_hand = reward if lost else reward + GAMMA * best
    arguments = (q_tm1[i], batch.a_tm1[i], batch.r_t[i], batch.discount_t[i], q_t[i])
    packages = q_learning(*arguments) + q_tm1[i, batch.a_tm1[i]]  # the error plus the value
    print(f"Target by hand {by_hand:.6f}, the package's {packages:.6f}{' (lost)' if lost else ''}")
    assert np.isclose(by_hand, packages, rtol=1e-5)

# %% [markdown]
# An update moves the weights a little towards these targets. The tutorial's optimiser is RMSprop
# with Keras's constants, and it has no target network: the targets come from the weights that are
# being trained. With the learning rate of 0.2 that such tutorials start from, the first step is
# far too long. A thousandth does what it should.


# %%
def learn(memory, learner, state, key):
    """One update, and the loss before and after; None as long as there is no batch."""
    if memory.num_rows < BATCH_SIZE:
        return None
    sample_key, update_key, loss_key = jax.random.split(key, 3)
    transition = to_transitions(replay.sample(memory, sample_key))
    after, _, metrics = learner.update(state, transition, update_key)
    measured = learner.update(after, transition, loss_key)[2]
    return after, metrics["loss"], measured["loss"]


def make(learning_rate):
    return make_learner(
        network,
        bellman_loss(q_learning, masked_squared_error(env.num_actions)),
        optax.rmsprop(learning_rate, decay=0.9, eps=1e-7),
        periodic_target_update(1),  # a copy after every step: no target network
    )


empty = replay.init(as_step(*game[0]))
learner = make(1e-3)
learner_state = learner.init(next(keys), obs)
print("With an empty memory:", learn(empty, learner, learner_state, next(keys)))

update_key = next(keys)
for learning_rate in (0.2, 1e-3):
    learner = make(learning_rate)
    _, before, after = learn(memory, learner, learner_state, jax.random.clone(update_key))
    print(f"Learning rate {learning_rate:g}: loss {before:.4f} before, {after:.4f} after an update")

# %% [markdown]
# ## The one deliberate difference: the time limit is not a death
#
# The game ends after 200 steps even if the pole stands. Such a tutorial takes every end for the
# same: the target of the last step is its reward alone, as if the pole had fallen. But the pole
# could have stood on, and nothing that the network sees tells it the time. The same upright pole
# is then worth 1 in step 200 and dozens in step 100, and what is learned is a muddle of the two.
#
# The package keeps the two ends apart, `terminated` and `truncated`. At a time limit `discount_t`
# remains gamma, and `obs_t` is the true last observation and not the next game's first.

# %%
held = uniform_replay(4, 4, env.max_steps, with_replacement=False)
ends = held.init(as_step(*game[0]))
state, first_obs = reset(next(keys))
four = [*game[:3], (first_obs, LEFT, step(next(keys), state, LEFT)[1])]
names = ("a step", "lost", "out of time", "a new game")
for name, (obs, action, timestep) in zip(names, four, strict=True):
    flags = {"terminated": jnp.array(name == "lost"), "truncated": jnp.array(name == "out of time")}
    ends = held.add(ends, as_step(obs, action, timestep._replace(**flags)))
sample = held.sample(ends, next(keys))
transition = to_transitions(sample)
for index, name in enumerate(names):
    (at,) = np.nonzero(np.asarray(sample.indices) == index)
    print(f"{name:12} discount_t = {transition.discount_t[at[0]]:.2f}")
    if name == "out of time":
        obs_t = transition.obs_t[at[0]]
        print("  obs_t:                     ", np.round(obs_t, 3))
        print("  what was seen last:        ", np.round(four[index][2].obs, 3))
        print("  the next game's first sight:", np.round(first_obs, 3))
        assert (obs_t == four[index][2].obs).all()

# %% [markdown]
# What difference it makes can be computed. With a reward of 1 for ever, a state is worth 1 / (1 -
# gamma). If instead one step in 200 is taken for a death, repeated updates end up lower:

# %%
bootstrapped = as_death = 0.0
for _ in range(5_000):
    bootstrapped = 1 + GAMMA * bootstrapped
    as_death = 1 + GAMMA * (1 - 1 / 200) * as_death
print(f"Bootstrapped through the limit: {bootstrapped:.1f}")
print(f"The limit learned as a death: {as_death:.1f}")

# %% [markdown]
# ## And then?
#
# These parts, trained over many games and seeds, are one setting of the package:

# %%
print(TUTORIAL)

# %% [markdown]
# `python experiments/tutorial_agent.py` trains it until the game is won, and shows what a target
# network, double Q-learning and the package's defaults add. `purejaxdqn/dqn.py` is the same story
# for a whole training run, in one file.
