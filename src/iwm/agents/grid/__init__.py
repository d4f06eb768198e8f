"""The grid task of "Communicating Plans, Not Percepts" (arXiv 2508.02912) and its agents.

Agents with a partial view share out tasks that take two; what they are told decides how well.

* ``world``: thousands of games at once, what an agent can see of its own, and the central planner
  that sees everything;
* ``imagination``: the learned transition model, and trajectories imagined with it;
* ``messages``: what agents tell each other: nothing, a bit, a compressed intention, everything;
* ``policy``: the network that all of them share;
* ``learning``: its training by imitation of the central planner, and the measurement.
"""
