# ---
# jupyter:
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
# memory, a network, exploration, learning, and a training loop. No knowledge of JAX is needed;
# three things help:
#
# - **Functions are pure.** Nothing is changed in place: a step takes a state and returns the next.
# - **Randomness has a key.** Each key is used once, and the same keys give the same page.
# - **`jax.jit` compiles** a function, and **`jax.vmap`** turns a function of one thing into a
#   function of a batch of things.
#
# Run it as a script (`python experiments/walkthrough.py`) or as a notebook (`make notebook`). It
# takes less than a minute. The training at the end has 20,000 steps; the environment variable
# `WALKTHROUGH_STEPS` shortens it (to 1,600 at least).

# %%
import os
import timeit

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from purejaxdqn import DQNConfig, agents, environments
from purejaxdqn.behaviours import epsilon_greedy
from purejaxdqn.losses import bellman_loss, masked_squared_error, q_learning
from purejaxdqn.networks import MLP, make_network
from purejaxdqn.replay import n_step_transition, uniform_replay
from purejaxdqn.training.evaluation import evaluate, greedy_policy
from purejaxdqn.training.learner import make_learner, periodic_target_update
from purejaxdqn.training.schedules import multiplicative_schedule
from purejaxdqn.types import Step, Transition

np.set_printoptions(precision=3, suppress=True)
print("JAX", jax.__version__)
keys = iter(jax.random.split(jax.random.key(0), 100))  # next(keys): a key that nobody has used

# %% [markdown]
# ## The environment
#
# What can be seen of the game, and what can be done in it. An observation is four numbers: where
# the cart is, how fast it moves, the angle of the pole, and how fast that angle changes. A game
# ends when the pole leans by more than 12 degrees, when the cart leaves the track, or after 200
# steps. Each game starts a little differently: all four numbers are drawn between -0.05 and 0.05.

# %%
env = environments.make("CartPole-v0")
MAX_STEPS = 200  # of a game: the time limit
print("Observation space:", env.observation_space)
print("Shape of an observation:", env.observation_space.shape)
print("Action space:", env.action_space)
print("Number of actions:", env.num_actions)
reset, step = jax.jit(env.reset), jax.jit(env.step)
for _ in range(3):
    print("Reset:", np.asarray(reset(next(keys))[1]))

# %% [markdown]
# Before the first action there is no reward. A step takes the state of the game and an action (0
# pushes left, 1 pushes right). It returns the next state and what the player is told: the
# observation, a reward of 1, and whether the game ended. There are two ways to end, and the package
# tells them apart: `terminated` means that the game was lost, and `truncated` means that the time
# was up. Here the first push is to the left. Pushing right again and again then tips the pole over
# to the left.

# %%
LEFT, RIGHT = jnp.int32(0), jnp.int32(1)


def print_step(n, obs, reward=None):
    x, v, a, pv = (f"{number:.3f}" for number in obs)
    print(f"Step {n} - Cart X: {x}, Cart V: {v}, Pole A: {a}, Pole V:{pv}, Reward: {reward}")


def is_over(timestep):
    return bool(timestep.terminated | timestep.truncated)


def print_status(timestep):
    print("The Game is over." if is_over(timestep) else "The game can continue")
    print("Info:", {name: bool(getattr(timestep, name)) for name in ("terminated", "truncated")})


state, obs = reset(next(keys))
print_step(0, obs)
for n in range(1, MAX_STEPS + 1):
    state, timestep = step(next(keys), state, LEFT if n == 1 else RIGHT)
    print_step(n, timestep.obs, timestep.reward)
    print_status(timestep)
    if is_over(timestep):
        break

# %% [markdown]
# Left and right in turn does better, but not for long: nobody looks at the pole. The game is kept,
# because the memory below is filled with it: each observation, the action, and what came of it.


# %%
def play(choose_action, key):
    """Plays one game, prints each of its steps, and returns them."""
    reset_key, *step_keys = jax.random.split(key, 1 + MAX_STEPS)
    state, obs = reset(reset_key)
    print_step(0, obs)
    game = []
    for n, step_key in enumerate(step_keys, start=1):
        action = choose_action(n, obs)
        state, timestep = step(step_key, state, action)
        print_step(n, timestep.obs, timestep.reward)
        game.append((obs, action, timestep))
        obs = timestep.obs
        if is_over(timestep):
            break
    print_status(timestep)
    score = sum(float(timestep.reward) for _, _, timestep in game)
    print("Game over!" if timestep.terminated else "Ran out of actions!", f"Score = {score}")
    return game


game = play(lambda n, obs: LEFT if n % 2 == 1 else RIGHT, next(keys))

# %% [markdown]
# ## The memory
#
# Steps that follow each other are alike, and a network that is shown only those forgets the rest.
# So they go into a memory, and are learned from in random order. The memory is a ring: once it is
# full, the newest entry takes the oldest one's place. This one holds 20 transitions and hands out
# 4. Asked too early, it says so. (A compiled training run cannot know these numbers in advance.
# There the settings are checked instead: the first steps are played at random until there is a
# batch.)

# %%
MEMORY_SIZE, BATCH_SIZE = 20, 4
TUTORIAL = agents.get("tutorial").config  # how such tutorials set everything
GAMMA = TUTORIAL.discount


def make_step(obs, action, timestep):
    """Makes what a memory is given: one step of each environment, of which there is one here."""
    next_obs, reward, terminated, truncated = timestep
    record = Step(obs, action, reward, terminated, truncated, next_obs)
    return jax.tree.map(lambda value: value[None], record)


replay = uniform_replay(MEMORY_SIZE, BATCH_SIZE, time_limit=env.max_steps, with_replacement=False)
remember = jax.jit(lambda memory, *played: replay.add(memory, make_step(*played)))
empty = memory = replay.init(make_step(*game[0]))
for n, played in enumerate(game):
    if n == BATCH_SIZE - 1:
        try:
            replay.sample(memory, next(keys))
        except ValueError as error:
            print("Refused:", error)
    memory = remember(memory, *played)
first_is_there = bool((memory.obs == game[0][0]).all(axis=-1).any())
print(f"{len(game)} steps were played, {int(memory.num_rows)} are remembered.")
print(f"Is the first observation still there? {'Yes' if first_is_there else 'No'}.")

# %% [markdown]
# Batches are drawn uniformly and without replacement: no transition is in a batch twice. Their
# names are those of the literature. `obs_tm1` and `a_tm1` are what was seen and done at time t - 1;
# `r_t` and `obs_t` are what came of it. `discount_t` is gamma, or 0 where the game was lost.
#
# Drawing without replacement need not shuffle the whole memory. Only as many entries as are drawn
# are shuffled, so that a memory of a million costs no more than one of a thousand.

# %%
draw = jax.jit(replay.sample)
for _ in range(3):
    sample = draw(memory, next(keys))
    print("Entries", sample.indices, "with actions", sample.window.action[:, 0])


def to_transitions(sample):
    """Makes transitions of what happened: the memory holds no discount, which enters here."""
    return jax.vmap(n_step_transition, in_axes=(0, None))(sample.window, GAMMA)


for name, value in zip(Transition._fields[:5], to_transitions(sample)[:5], strict=True):
    print(f"{name:10} {value.dtype}{list(value.shape)}")

for capacity in (1_000, 1_000_000):
    large = uniform_replay(capacity, 32, env.max_steps, with_replacement=False)
    full = large.init(make_step(*game[0])).replace(num_rows=jnp.int32(capacity))
    draw_32, key = jax.jit(large.sample), next(keys)
    distinct = len(set(draw_32(full, key).indices.tolist()))  # the first call compiles

    def draw_again(draw_32=draw_32, full=full, key=key):
        return jax.block_until_ready(draw_32(full, jax.random.clone(key)))

    microseconds = min(timeit.repeat(draw_again, number=10, repeat=10)) / 10 * 1e6
    print(f"{capacity:>9,} entries: {distinct} different ones in {microseconds:.0f} microseconds")

# %% [markdown]
# ## The network
#
# Two hidden layers with ReLU and a linear output. It puts out one number per action: the discounted
# reward that is still to come if this action is taken now.
#
# Only the action that was taken has a target. Many tutorials see to that with a mask: outputs and
# targets are multiplied by 1 for the action taken and by 0 for all others, and the mean square
# error runs over all of them. Picking the one value and squaring its error is the same, up to a
# factor: the mean over `A` outputs divides by `A`, while the usual loss has a half in front. Loss
# and gradients with the mask are 2 / A times those of the picked value.

# %%
network = make_network(MLP((10, 10), env.num_actions))
params = jax.jit(network.init)(next(keys), obs)
print("Action values:", jax.jit(network.apply)(params, obs))

batch = to_transitions(draw(memory, next(keys)))
targets = jnp.array([1.0, 2.0, 3.0, 4.0])  # any
outputs = jax.jit(jax.vmap(network.apply, in_axes=(None, 0)))
loss_fn = bellman_loss(q_learning, masked_squared_error(env.num_actions))


def masked_loss(params):
    mask = jax.nn.one_hot(batch.a_tm1, env.num_actions)
    return jnp.mean(jnp.square(outputs(params, batch.obs_tm1) * mask - targets[:, None] * mask))


def picked_loss(params):
    picked = jax.vmap(lambda q, a: q[a])(outputs(params, batch.obs_tm1), batch.a_tm1)
    return jnp.mean(0.5 * jnp.square(picked - targets))


def package_loss(params):
    """Computes the package's loss for the same targets: after a lost game the reward is all."""
    lost = batch._replace(r_t=targets, discount_t=jnp.zeros(BATCH_SIZE))
    over_batch = jax.vmap(loss_fn, in_axes=(None, None, None, 0, 0))
    return over_batch(network, params, params, lost, loss_keys).loss.mean()


def differentiate(loss):
    """Computes a loss, and its gradient as one vector."""
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    return value, ravel_pytree(gradient)[0]


loss_keys = jax.random.split(next(keys), BATCH_SIZE)
factor = 2 / env.num_actions
masked, masked_gradient = differentiate(masked_loss)
picked, picked_gradient = differentiate(picked_loss)
package, package_gradient = differentiate(package_loss)
print(f"Loss with a mask {masked:.6f}, {factor:g} times that of the picked {factor * picked:.6f}")
print(f"The package's {package:.6f}")
to_picked = jnp.abs(masked_gradient - factor * picked_gradient).max()
to_package = jnp.abs(masked_gradient - package_gradient).max()
print(f"Largest differences between gradients: {to_picked:.1e} and {to_package:.1e}")
assert np.allclose(masked, [factor * picked, package], rtol=1e-5)
assert max(to_picked, to_package) < 1e-5

# %% [markdown]
# ## Exploration
#
# An agent that always does what it thinks best never finds out better. So with probability epsilon
# it acts at random. Epsilon stays at 1 until the memory holds a batch, because nothing can be
# learned before. From then on each action multiplies it by a decay.
#
# First one action, and then a whole game of an agent that has an empty memory when it begins. With
# a decay of 0.95 the random actions soon give way to those of a network that knows nothing yet.

# %%
epsilon = multiplicative_schedule(1.0, 0.95)


@jax.jit
def act(params, obs, probability, key):
    """Chooses an action, and tells whether it was left to chance."""
    explore_key, action_key = jax.random.split(key)
    explores = jax.random.uniform(explore_key) < probability
    q_values = network.apply(params, obs)
    return epsilon_greedy(action_key, q_values, jnp.where(explores, 1.0, 0.0)), explores


def explore_or_exploit(num_actions, obs, key):
    """Acts after so many actions since there is a batch, and says how."""
    chosen, explores = act(params, obs, epsilon(jnp.int32(num_actions)), key)
    print("Exploration!" if explores else "Exploitation!")
    return chosen


chosen = explore_or_exploit(0, obs, next(keys))
print("Push Right" if chosen == RIGHT else "Push Left")
act_keys = jax.random.split(next(keys), MAX_STEPS)
game = play(lambda n, x: explore_or_exploit(n - 1 - BATCH_SIZE, x, act_keys[n - 1]), next(keys))
memory = empty
for played in game:
    memory = remember(memory, *played)
print(f"Epsilon has come down to {epsilon(jnp.int32(len(game) - BATCH_SIZE)):.2f}")

# %% [markdown]
# ## Learning
#
# What should the value of an action be? The reward that it brought, plus what the best action is
# worth from there, discounted by gamma: the Bellman target. Where the game was lost, nothing comes
# after, and the target is the reward alone. Here it is by hand, for a batch that holds the last
# step of the game above:

# %%
draw_many = jax.jit(jax.vmap(replay.sample, in_axes=(None, 0)))
many = jax.vmap(to_transitions)(draw_many(memory, jax.random.split(next(keys), 50)))
many = jax.tree.map(np.concatenate, many)
last = int(jnp.argmin(many.discount_t))  # where the game was lost
rows = (last + jnp.arange(BATCH_SIZE)) % len(many.r_t)
batch = jax.tree.map(lambda x: x[rows], many)

q_tm1, q_t = outputs(params, batch.obs_tm1), outputs(params, batch.obs_t)
for i in range(BATCH_SIZE):
    reward, best = float(batch.r_t[i]), float(q_t[i].max())
    lost = float(batch.discount_t[i]) == 0
    by_hand = reward if lost else reward + GAMMA * best
    td_error = q_learning(q_tm1[i], batch.a_tm1[i], batch.r_t[i], batch.discount_t[i], q_t[i])
    package = td_error + q_tm1[i, batch.a_tm1[i]]
    print(f"Target by hand {by_hand:.6f}, the package's {package:.6f}{' (lost)' if lost else ''}")
    assert np.isclose(by_hand, package, rtol=1e-5)

# %% [markdown]
# An update moves the weights a little towards these targets. The tutorial's optimiser is RMSprop
# with Keras's constants, and it has no target network: the targets come from the weights that are
# being trained. With the learning rate of 0.2 that such tutorials start from, the first step is
# far too long. A thousandth does what it should.


# %%
def make_rmsprop_learner(learning_rate, target_period=1):
    """Makes what does an update; a period of 1 is no target network."""
    rmsprop = optax.rmsprop(learning_rate, decay=0.9, eps=1e-7)
    return make_learner(network, loss_fn, rmsprop, periodic_target_update(target_period))


def learn(memory, learning_rate, key):
    """Returns a batch's loss before and after an update; None if there is no batch yet."""
    if memory.num_rows < BATCH_SIZE:
        return None
    sample_key, update_key = jax.random.split(key)
    batch = to_transitions(draw(memory, sample_key))
    first_key, second_key = jax.random.split(update_key)
    update = jax.jit(make_rmsprop_learner(learning_rate).update)
    after, _, first = update(learner_state, batch, first_key)
    return first["loss"], update(after, batch, second_key)[2]["loss"]


learner_state = make_rmsprop_learner(1e-3).init(next(keys), obs)
print("With an empty memory:", learn(empty, 1e-3, next(keys)))
learn_key = next(keys)  # the same batch for both learning rates
for learning_rate in (0.2, 1e-3):
    before, after = learn(memory, learning_rate, jax.random.clone(learn_key))
    print(f"Learning rate {learning_rate:g}: loss {before:.4f} before, {after:.4f} after an update")

# %% [markdown]
# ## The one deliberate difference: the time limit is not a death
#
# The game ends after 200 steps even if the pole stands. Such a tutorial takes every end for the
# same: the target of the last step is its reward alone, as if the pole had fallen. But the pole
# could have stood on, and nothing that the network sees tells it the time. The same upright pole
# is then worth 1 in step 200 and dozens in step 100, and the network learns a muddle of the two.
#
# The package keeps the two ends apart, `terminated` and `truncated`. At a time limit `discount_t`
# remains gamma, and `obs_t` is the true last observation and not the next game's first.
#
# What difference it makes can be computed. With a reward of 1 for ever, a state is worth 1 / (1 -
# gamma). If one step in 200 is taken for a death instead, repeated updates end up lower:

# %%
held = uniform_replay(4, 4, env.max_steps, with_replacement=False)
add, ends = jax.jit(held.add), held.init(make_step(*game[0]))
state, first_obs = reset(next(keys))
four = [*game[:3], (first_obs, LEFT, step(next(keys), state, LEFT)[1])]
names = ("a step", "lost", "out of time", "a new game")
for name, (obs, action, timestep) in zip(names, four, strict=True):
    flags = {"terminated": jnp.array(name == "lost"), "truncated": jnp.array(name == "out of time")}
    ends = add(ends, make_step(obs, action, timestep._replace(**flags)))
sample = jax.jit(held.sample)(ends, next(keys))
transition = to_transitions(sample)
for index, name in enumerate(names):
    (at,) = np.nonzero(np.asarray(sample.indices) == index)
    print(f"{name:12} discount_t = {transition.discount_t[at[0]]:.2f}")
    if name == "out of time":
        obs_t = transition.obs_t[at[0]]
        print("  obs_t:                     ", np.asarray(obs_t))
        print("  what was seen last:        ", np.asarray(four[index][2].obs))
        print("  the next game's first sight:", np.asarray(first_obs))
        assert (obs_t == four[index][2].obs).all()

bootstrapped = as_death = 0.0
for _ in range(5_000):
    bootstrapped = 1 + GAMMA * bootstrapped
    as_death = 1 + GAMMA * (1 - 1 / 200) * as_death
print(f"Bootstrapped through the limit: {bootstrapped:.1f}")
print(f"The limit learned as a death: {as_death:.1f}")

# %% [markdown]
# ## Training
#
# All parts are there, and a loop puts them together: act, take a step, remember it, learn from a
# batch. `jax.lax.scan` is that loop as one compiled program. Its state is a tuple that each step
# takes and returns, and each step has a key of its own. Network, memory, and learning rate now have
# the size that the settings of the agent named `tutorial` give them.
#
# The game counts as won when the average of 100 games is at least 195. The agent is then asked to
# play without exploration, in 100 new games. Without a target network, as in the tutorial, the
# scores rise and fall again: each update moves its own targets. A target network that is copied
# only every 100 updates is steadier.

# %%
# 1,600 steps hold at least the 8 games that are shown below, as a game has at most 200.
NUM_STEPS = max(1_600, int(os.environ.get("WALKTHROUGH_STEPS", "20000")))
network = make_network(MLP(TUTORIAL.hidden_sizes, env.num_actions))
sizes = (TUTORIAL.replay_capacity, TUTORIAL.batch_size)
replay = uniform_replay(*sizes, env.max_steps, with_replacement=False)
epsilon = multiplicative_schedule(1.0, TUTORIAL.epsilon_decay)


@jax.jit
def train(key, target_period):
    """Trains from nothing; returns the weights, and which steps ended a game."""
    learner = make_rmsprop_learner(TUTORIAL.learning_rate, target_period)

    def act_and_learn(now, key):
        state, obs, memory, learner_state = now
        act_key, step_key, sample_key, loss_key = jax.random.split(key, 4)
        q_values = network.apply(learner_state.params, obs)
        action = epsilon_greedy(act_key, q_values, epsilon(learner_state.num_updates))
        state, next_obs, timestep = environments.step_and_reset(env, step_key, state, action)
        memory = replay.add(memory, make_step(obs, action, timestep))

        def update(state):
            batch = to_transitions(replay.sample(memory, sample_key))
            return learner.update(state, batch, loss_key)[0]

        has_batch = memory.num_rows >= TUTORIAL.batch_size
        learner_state = jax.lax.cond(has_batch, update, lambda state: state, learner_state)
        over = timestep.terminated | timestep.truncated
        return (state, next_obs, memory, learner_state), over

    reset_key, weights_key, loop_key = jax.random.split(key, 3)
    state, obs = env.reset(reset_key)
    start = (state, obs, replay.init(make_step(*game[0])), learner.init(weights_key, obs))
    end, over = jax.lax.scan(act_and_learn, start, jax.random.split(loop_key, NUM_STEPS))
    return end[-1].params, over


@jax.jit
def play_greedily(params, key):
    """Plays 100 games without exploration, and returns their scores."""
    return evaluate(greedy_policy(network, params), env, key, 100).episode_return


train_key, evaluation_key = next(keys), next(keys)  # the same for both agents
for name, target_period in {"No target network": 1, "With a target network": 100}.items():
    params, over = train(jax.random.clone(train_key), target_period)
    scores = np.diff(np.flatnonzero(over), prepend=-1)
    print(f"{name}: {len(scores)} games in {NUM_STEPS} steps")
    for part in np.array_split(np.arange(len(scores)), 8):
        print(f"  Games {part[0] + 1:3} to {part[-1] + 1:3}: mean score {scores[part].mean():.1f}")
    final = play_greedily(params, jax.random.clone(evaluation_key))
    print(f"  Evaluation: mean score {final.mean():.1f}, lowest {final.min():.0f}")

# %% [markdown]
# ## And then?
#
# One seed says little, and one setting was changed above. These parts, trained over many games and
# seeds, are one record of settings. Here is what it changes in the package's own defaults:

# %%
for name, value in vars(TUTORIAL).items():
    default = getattr(DQNConfig(), name)
    if value != default:
        print(f"{name:26} {value!s:16} and not {default}")

# %% [markdown]
# `python experiments/tutorial_agent.py` trains it until the game is won, and shows what a target
# network, double Q-learning and the package's defaults add. `purejaxdqn/agents/dqn/dqn.py` is the
# same story for a whole training run, in one file.
