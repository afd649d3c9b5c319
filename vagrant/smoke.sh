#!/bin/sh
# The story at the end of `vagrant up`, on the first server: prints what holds, and fails with the first thing that does not.
set -eu
export KUBECONFIG=/var/lib/sluice/admin.kubeconfig
samples=/usr/share/sluice/samples

holds() {
    what=$1
    shift
    "$@" >/tmp/smoke.out 2>&1 || {
        echo "does not hold: $what"
        cat /tmp/smoke.out
        exit 1
    }
    echo "holds: $what"
}

nodes=$(kubectl get nodes -o name | wc -l)
holds "all $nodes nodes are Ready" kubectl wait --for=condition=Ready node --all --timeout=300s
kubectl apply -f $samples/echo.yaml >/dev/null
holds "three pods run" kubectl rollout status deployment/echo --timeout=300s

cat >/tmp/everywhere.yaml <<'EOF'
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      containers:
        - {name: main, image: "sluice.local/echo:latest", imagePullPolicy: IfNotPresent}
EOF
kubectl apply -f /tmp/everywhere.yaml >/dev/null
holds "a pod runs on every node" kubectl rollout status daemonset/everywhere --timeout=300s
for pod in $(kubectl get pods -l app=everywhere -o jsonpath='{.items[*].metadata.name}'); do
    holds "$pod asks the Service by name, and every pod answers" \
        kubectl exec "$pod" -- /echo get http://echo.default.svc.cluster.local/ --distinct 3
done
for address in $(kubectl get nodes -o jsonpath='{.items[*].status.addresses[0].address}'); do
    holds "the node port at $address answers from outside" curl -sf --max-time 5 "http://$address:30080/"
done

asks="i=0; while [ ! -e /tmp/stop ]; do /echo get http://echo/ >/dev/null || exit 1; i=\$((i+1)); done; echo \$i requests"
pod=$(kubectl get pods -l app=everywhere -o jsonpath='{.items[0].metadata.name}')
kubectl exec "$pod" -- sh -c "$asks" >/tmp/load.out 2>&1 &
load=$!
kubectl rollout restart deployment/echo >/dev/null
holds "a rolling update ends" kubectl rollout status deployment/echo --timeout=300s
kubectl exec "$pod" -- touch /tmp/stop
holds "no request failed meanwhile" wait $load
cat /tmp/load.out
kubectl delete daemonset everywhere >/dev/null
echo "all of it holds"
