"""What a reader should see in each picture of an evaluation, by the picture's file name."""

from __future__ import annotations

# In the order in which a page shows them.
CAPTIONS: dict[str, str] = {
    "outcomes": (
        "From one state every action was tried in the game itself. Each row: that state, the "
        "outcome nearest to the prediction, and the action's true outcome. In the rows marked "
        "found they are the same picture."
    ),
    "rollout": (
        "Predictions fed with predictions. The model's line should lie below copying the last "
        "real latent at every step, and below the lines with wrong actions and with none. Bands "
        "are 95 % intervals over episodes."
    ),
    "rollouts": (
        "Pairs of rows: what came, and the frames of the same episode that lie nearest to the "
        "predictions, which saw the first picture alone and the actions. Turns should go the "
        "same way, and rooms should be the same."
    ),
    "neighbours": (
        "Each row: a held-out frame, the frame of its bank that lies nearest to the prediction, "
        "and the truth. The last two should look alike."
    ),
    "ranks": (
        "Where the true latent ranks among the bank. The model's line should crowd at the left, "
        "rank 1; the others show what guessing, copying or a wrong action reach."
    ),
    "roc": (
        "Ordinary transitions against staged anomalies, by surprise. Curves should hug the upper "
        "left corner; the dashed line is guessing."
    ),
    "paths": (
        "Six held-out episodes: broad lines are what came, dashed ones what was foretold from the "
        "first state and the actions alone. The dashed lines should lie on the broad ones."
    ),
    "horizon": (
        "Left, the error of states foretold; four of five lie in the band. Right, the share "
        "within the bound. The model should lie below every other line on the left and above it "
        "on the right, up to the last step; the dotted line is the error that it expected."
    ),
    "calibration": (
        "What the model said of its predictions against what came true, on episodes that the "
        "tables were not fitted on. Points should lie on the dashed line."
    ),
    "reconstructions": (
        "Pairs of rows: held-out frames, and what the decoder makes of their latents. Rooms, "
        "doors and colours should be the same; textures are too much for so few numbers."
    ),
    "imagined": (
        "Pairs of rows: what came, and what the prior imagined from the frames before and the "
        "actions alone. Turns should go the same way; what was never seen stays blurred."
    ),
    "attention": (
        "One held-out window, and where each slot looks. Slots should look at different places, "
        "and follow them as the view turns."
    ),
    "components": (
        "Which component of the prior explains each frame. Several colours should share the "
        "picture, and change where the scene does."
    ),
    "tokens": (
        "Each row: a held-out frame, what comes back from its tokens, and what JPEG makes of it in "
        "the same bits; beside each, where it is off. Walls and things should stand where they "
        "stood; the tokens' error map should be the darker one."
    ),
    "psnr": (
        "How near held-out frames come back, over all of them. The tokens should lie to the right "
        "of JPEG at the same bits."
    ),
    "codes": (
        "How often each code is used. The curve should reach far to the right before it falls: "
        "codes that nothing uses cost bits and say nothing."
    ),
    "dreams": (
        "What came, and what was imagined from one frame and from several under the same actions. "
        "Turns and steps should come as they came; far ahead, rooms that were never seen need not."
    ),
    "actions": (
        "The same start under the actions that were taken and under random ones. The first should "
        "follow the true row; the second should not, but stay a picture of the game."
    ),
    "drift": (
        "PSNR of imagined frames, step by step, beside the last frame shown and beside an "
        "unrelated frame of the game. The model should lie above both, and level out."
    ),
    "gains": (
        "The paired difference to the last frame shown. It should lie above 0 at every step."
    ),
    "loss": (
        "The course of training. The total falls; the effective rank stays well above 1 and no "
        "dimension's deviation falls to 0: the latents have not collapsed."
    ),
}


def caption(name: str) -> str:
    """The caption of a picture; its own name where none is written."""
    return CAPTIONS.get(name, name.replace("_", " "))


def place(name: str) -> tuple[int, str]:
    """Sorts pictures as a page shows them: those that are not named here last, by name."""
    order = list(CAPTIONS)
    return (order.index(name) if name in CAPTIONS else len(order)), name
