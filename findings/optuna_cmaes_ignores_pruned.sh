#!/usr/bin/env bash
# One would guess: with a pruner that stops two of three trials, CMA-ES learns from the pruned ones
# too, as TPE does by their intermediate values. Seen: only COMPLETE trials count, so 40 trials of
# which 14 are complete update its distribution once where 40 complete ones update it three times,
# and nothing says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optuna==5.0.0 cmaes==0.13.1
"$folder/venv/bin/python" - <<'PY'
import optuna
from optuna.samplers import CmaEsSampler

optuna.logging.set_verbosity(optuna.logging.ERROR)


def generations(pruned_share: bool) -> tuple[int, int]:
    """Run 40 trials of 6 parameters; return how many are complete, and the last generation."""
    study = optuna.create_study(sampler=CmaEsSampler(seed=0, popsize=10))
    for number in range(40):
        trial = study.ask({f"x{i}": optuna.distributions.FloatDistribution(-1, 1) for i in range(6)})
        loss = sum(x * x for x in trial.params.values())
        trial.report(loss, 1)
        if pruned_share and number % 3:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, loss)
    complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    attrs = [t.system_attrs for t in study.get_trials()]
    last = max((v for a in attrs for k, v in a.items() if k.endswith("generation")), default=0)
    return len(complete), int(last)


print("optuna", optuna.__version__)
(all_complete, with_all), (third, with_third) = generations(False), generations(True)
print(f"{all_complete} complete trials of 40: generation {with_all}")
print(f"{third} complete trials of 40: generation {with_third}")
assert with_all >= 2, "CMA-ES no longer updates after 40 complete trials"
assert with_third <= 1, "CMA-ES now learns from pruned trials: this finding is out of date"
PY
