#!/usr/bin/env bash
# One would guess: reading a tracking database of an older MLflow either works without changing it, or
# is refused with a hint at `mlflow db upgrade`. Seen: listing its experiments with a newer MLflow
# migrates the tables in place, and the older MLflow that other programs still use can no longer open
# the database.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 3.10.0 3.17.2; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "mlflow==$version"
done
cd "$folder"
revision() { python3 -c "import sqlite3; print(sqlite3.connect('file:store.db?mode=ro', uri=True).execute('select version_num from alembic_version').fetchone()[0])"; }
list="import mlflow; print(mlflow.__version__, [e.name for e in mlflow.MlflowClient('sqlite:///store.db').search_experiments()])"
"$folder/3.10.0/bin/python" -c "$list" 2>/dev/null
before=$(revision)
"$folder/3.17.2/bin/python" -c "$list" 2>/dev/null
after=$(revision)
echo "revision of the database before and after it was listed by 3.17.2: $before, $after"
if [ "$before" = "$after" ]; then
  echo "the store was not migrated: this finding is out of date"
  exit 1
fi
if "$folder/3.10.0/bin/python" -c "$list" >again.log 2>&1; then
  echo "the older MLflow still opens it: this finding is out of date"
  exit 1
fi
echo "the older MLflow now says: $(grep -E "Error|Exception" again.log | tail -1)"
