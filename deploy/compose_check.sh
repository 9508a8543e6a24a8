#!/usr/bin/env bash
# The true test of docker-compose.yml, where a Docker engine exists: build, start, ask, scale, remove.
set -euo pipefail
cd "$(dirname "$0")/.."
export COMPOSE_PROJECT_NAME=tokenbus-check PORT="${PORT:-18000}"
address=http://127.0.0.1:$PORT/v1
trap 'status=$?; [ $status = 0 ] || docker compose logs --tail 40; docker compose down -v --remove-orphans; exit $status' EXIT

docker compose up --build --wait --wait-timeout 600
curl -fsS "$address/models" | grep smollm2-135m
question='{"model": "smollm2-135m", "messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}'
ask() { curl -fsS "$address/chat/completions" -H 'Content-Type: application/json' -d "$question" | grep Paris; }
ask

docker compose up --wait --scale worker=2
docker compose exec -T gateway python -m registry --json | grep -c '"worker"' | grep -x 2
docker kill "$(docker compose ps -q worker | head -1)" >/dev/null
ask

# Nobody but the gateway listens outside, nobody runs as root, and the bus asks for its password.
[ "$(docker compose ps --format '{{.Ports}}' | grep -c -- '->')" = 1 ]
for service in gateway worker; do [ "$(docker compose exec -T $service id -u)" = 10001 ]; done
docker compose exec -T redis sh -c 'ps -o user,comm' | grep -E '^redis +redis-server'
docker compose exec -T redis redis-cli ping | grep NOAUTH
echo "compose: all good"
