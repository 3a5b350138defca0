"""The part of the launcher `queued_resources`'s script that is the same for all launches.

Bash, behind lines that set `launch`, `slices`, `at_once`, `max_restarts`, `disk_full`; `install` and `work`, commands
for the hosts, of which `work` knows `$unit`; and the lists `units`, `where` (flags of every gcloud) and `wanted` (of
creating).
"""

BODY = r"""
logs=${SLICEDICE_LOGS:-${XDG_CACHE_HOME:-$HOME/.cache}/slicedice/launches/$launch}
wait_seconds=${SLICEDICE_WAIT_SECONDS:-30}
mkdir -p "$logs"

# The state of the queued resource $1; nothing if there is none. Fails where gcloud does.
state_of() {
  gcloud compute tpus queued-resources list "${where[@]}" --filter="name ~ \"(^|/)$1\$\"" --format='value(state.state)'
}

on_all() {  # on_all NAME COMMAND: on every host of every slice, all at the same time
  gcloud compute tpus queued-resources ssh "$1" "${where[@]}" --node=all --worker=all --batch-size=all --quiet \
    --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oConnectTimeout=30 --command="$2"
}

create() {
  local nodes=(--node-id="$1")
  if [ "$slices" -gt 1 ]; then nodes=(--node-count="$slices" --node-prefix="$1"); fi
  gcloud compute tpus queued-resources create "$1" "${where[@]}" "${nodes[@]}" "${wanted[@]}" --quiet
}

# Deletes the queued resource $1 with its machines, which cost until then.
delete() {
  local try
  for try in 1 2 3 4 5; do
    if gcloud compute tpus queued-resources delete "$1" "${where[@]}" --force --quiet; then return; fi
    if state=$(state_of "$1") && [ -z "$state" ]; then return; fi
    echo "$1 is still there after $try tries to delete it"
    sleep "$wait_seconds"
  done
  echo "$1 COULD NOT BE DELETED AND MAY COST MONEY: gcloud compute tpus queued-resources delete $1 ${where[*]} --force"
}

# Trains the unit $1 from asking for machines to deleting them. Returns what its worker ended with, 130 if cancelled.
train() {
  local unit=$1 name=$launch-$1 asked=no failures=0 state status
  while :; do
    if ! state=$(state_of "$name"); then
      sleep "$wait_seconds"
      continue
    fi
    if [ -e "$logs/unit-$unit.cancelled" ] || { [ -z "$state" ] && [ "$asked" = yes ]; }; then
      if [ -n "$state" ]; then delete "$name"; fi
      return 130
    fi
    status=0
    case $state in
      '')
        if create "$name"; then
          asked=yes
          continue
        fi
        status=1
        ;;
      ACTIVE)
        asked=yes
        { on_all "$name" "$install" && on_all "$name" "unit=$unit; $work"; } || status=$?
        if [ "$status" = 0 ] || [ "$status" = "$disk_full" ]; then
          delete "$name"
          return "$status"
        fi
        # Machines that were taken away may have a minute to run when their worker is gone already.
        sleep "$wait_seconds"
        if ! state=$(state_of "$name") || [ "$state" != ACTIVE ]; then continue; fi
        ;;
      SUSPENDED)
        echo "$name was preempted"
        delete "$name"
        asked=no
        continue
        ;;
      FAILED)
        delete "$name"
        asked=no
        status=1
        ;;
      *)
        asked=yes
        sleep "$wait_seconds"
        continue
        ;;
    esac
    failures=$((failures + 1))
    echo "$name failed for the ${failures}th time, with status $status"
    if [ "$failures" -gt "$max_restarts" ]; then
      if [ "$asked" = yes ]; then delete "$name"; fi
      return "$status"
    fi
    sleep "$wait_seconds"
  done
}

if [ "${1:-}" = --unit ]; then
  status=0
  train "$2" >> "$logs/unit-$2.log" 2>&1 || status=$?
  echo "$status" > "$logs/unit-$2.ended"
  echo "unit $2 ended with status $status; see $logs/unit-$2.log"
  exit "$((status == 255 ? 1 : status))"  # at 255, which ssh itself ends with, xargs would start no more units
fi
# Held as long as anything of the script runs: by it the launcher knows that waiting units are waited for. Who starts
# the script with the lock names its descriptor; who asks whether there is one has it for a moment.
if [ -z "${SLICEDICE_LOCK:-}" ]; then
  exec 9>> "$logs/lock"
  SLICEDICE_LOCK=9
fi
if ! flock --wait 1 "$SLICEDICE_LOCK"; then
  echo "The script of $launch is running already, or there is no flock; its logs are in $logs." >&2
  exit 1
fi
if [ "$#" -gt 0 ]; then units=("$@"); fi
for unit in "${units[@]}"; do
  if [ "$(cat "$logs/unit-$unit.ended" 2> /dev/null)" != 0 ]; then
    rm -f "$logs/unit-$unit.ended"
    echo "$unit"
  fi
done | xargs -P "$at_once" -I '{}' bash "$0" --unit '{}'
"""
