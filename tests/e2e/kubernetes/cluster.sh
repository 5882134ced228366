#!/usr/bin/env bash
# A cluster for tests: etcd and kube-apiserver on this machine's loopback, at free ports. It has no node, scheduler or
# controller, so pods are never started; rights, tokens and objects work as in any cluster.
#
#   tests/e2e/kubernetes/cluster.sh start DATA_DIR     prints the path of a kubeconfig for its administrator
#   tests/e2e/kubernetes/cluster.sh stop DATA_DIR
#
# The programs come from tools.sh: in the folder FLUXSERVE_KUBERNETES_TOOLS, or in PATH. DATA_DIR has the ids of the
# processes (etcd.pid, apiserver.pid), their logs (etcd.log, apiserver.log) and the certificate authority (pki/ca.crt).
set -euo pipefail

start_seconds_max=120
stop_seconds_max=10

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
[ "$#" -eq 2 ] || usage
[ -z "${FLUXSERVE_KUBERNETES_TOOLS:-}" ] || PATH=$(realpath "$FLUXSERVE_KUBERNETES_TOOLS"):$PATH
mkdir -p "$2"
data=$(cd "$2" && pwd)
pki=$data/pki

certificate() { # NAME SUBJECT EXTENSIONS
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" \
    -keyout "$pki/$1.key" -out "$pki/$1.csr" 2>>"$data/openssl.log"
  openssl x509 -req -days 2 -in "$pki/$1.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -CAcreateserial \
    -extfile <(printf '%s\n' "$3") -out "$pki/$1.crt" 2>>"$data/openssl.log"
}

certificates() {
  mkdir -p "$pki"
  openssl req -x509 -days 2 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=authority of a test" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
    -keyout "$pki/ca.key" -out "$pki/ca.crt" 2>>"$data/openssl.log"
  certificate apiserver /CN=kube-apiserver "$(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth' \
    DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.96.0.1)"
  certificate administrator /O=system:masters/CN=administrator extendedKeyUsage=clientAuth
  openssl ecparam -name prime256v1 -genkey -noout -out "$pki/accounts.key"
  openssl ec -in "$pki/accounts.key" -pubout -out "$pki/accounts.pub" 2>>"$data/openssl.log"
}

free_ports() { # HOW_MANY
  python3 - "$1" <<'PYTHON'
import socket
import sys

listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(listener.getsockname()[1] for listener in listeners))
PYTHON
}

# In its own session: signals to the caller do not end it.
launch() { # NAME COMMAND...
  local name=$1
  shift
  nohup setsid "$@" </dev/null >>"$data/$name.log" 2>&1 &
  echo $! >"$data/$name.pid"
}

kubeconfig() { # SERVER
  cat <<YAML
apiVersion: v1
kind: Config
current-context: test
clusters:
- name: test
  cluster:
    server: $1
    certificate-authority-data: $(base64 -w 0 <"$pki/ca.crt")
users:
- name: administrator
  user:
    client-certificate-data: $(base64 -w 0 <"$pki/administrator.crt")
    client-key-data: $(base64 -w 0 <"$pki/administrator.key")
contexts:
- name: test
  context:
    cluster: test
    user: administrator
YAML
}

start() {
  local program port etcd_port peer_port etcd_url peer_url
  for program in etcd kube-apiserver openssl curl python3; do
    command -v "$program" >/dev/null || { echo "error: no $program" >&2; exit 1; }
  done
  [ ! -e "$data/apiserver.pid" ] || { echo "error: $data is in use: stop it first" >&2; exit 1; }
  umask 077
  [ -e "$pki/accounts.pub" ] || certificates
  read -r port etcd_port peer_port < <(free_ports 3)
  etcd_url=http://127.0.0.1:$etcd_port
  peer_url=http://127.0.0.1:$peer_port
  kubeconfig "https://127.0.0.1:$port" >"$data/administrator.kubeconfig"

  # Tests need not wait for the disk; old versions lack the option.
  local careless=()
  ! etcd --help 2>&1 | grep -q unsafe-no-fsync || careless=(--unsafe-no-fsync)
  launch etcd etcd --name test --data-dir "$data/etcd" --listen-client-urls "$etcd_url" --advertise-client-urls "$etcd_url" \
    --listen-peer-urls "$peer_url" --initial-advertise-peer-urls "$peer_url" --initial-cluster "test=$peer_url" "${careless[@]}"

  # Without controllers no namespace has the account `default`, which the ServiceAccount plugin requires for pods.
  launch apiserver kube-apiserver --etcd-servers="$etcd_url" \
    --bind-address=127.0.0.1 --advertise-address=127.0.0.1 --secure-port="$port" \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
    --kubelet-client-certificate="$pki/administrator.crt" --kubelet-client-key="$pki/administrator.key" \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$pki/accounts.pub" \
    --service-account-signing-key-file="$pki/accounts.key" --service-cluster-ip-range=10.96.0.0/16 \
    --authorization-mode=RBAC --disable-admission-plugins=ServiceAccount --endpoint-reconciler-type=none

  local ends=$((SECONDS + start_seconds_max))
  until curl -fsS -o "$data/ready" --max-time 5 --cacert "$pki/ca.crt" --cert "$pki/administrator.crt" \
    --key "$pki/administrator.key" "https://127.0.0.1:$port/readyz" 2>"$data/not-ready"; do
    if [ "$SECONDS" -ge "$ends" ] || ! kill -0 "$(cat "$data/apiserver.pid")" 2>/dev/null; then
      echo "error: the API server does not become ready" >&2
      tail -n 20 "$data/etcd.log" "$data/apiserver.log" "$data/not-ready" >&2
      stop
      exit 1
    fi
    sleep 0.2
  done
  echo "$data/administrator.kubeconfig"
}

# The API server first, which would keep retrying etcd.
stop() {
  local name process ends
  for name in apiserver etcd; do
    [ -e "$data/$name.pid" ] || continue
    process=$(cat "$data/$name.pid")
    # A stopped process handles the signal only after it continues.
    kill -TERM "$process" 2>/dev/null || true
    kill -CONT "$process" 2>/dev/null || true
    ends=$((SECONDS + stop_seconds_max))
    while kill -0 "$process" 2>/dev/null; do
      [ "$SECONDS" -lt "$ends" ] || kill -KILL "$process" 2>/dev/null || true
      sleep 0.1
    done
    rm -f "$data/$name.pid"
  done
}

case $1 in
  start) start ;;
  stop) stop ;;
  *) usage ;;
esac
