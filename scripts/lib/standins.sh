# Stand-ins for base images that cannot be pulled, from the distribution's packages, under the same names. Source it after
# scripts/lib/install.sh.
#
# need_images IMAGE...    pulls what is not there; what cannot be pulled is built, and it is said that it was
#
# A stand-in is as close to the image as its users here need: the same programs, their names, environment and start.

_standin_say() { printf '%s\n' "$*" >&2; }

# Debian's smallest system, with this machine's certificate authorities: what pip in it speaks to may need them.
_standin_base() {
  if docker image inspect sessionferry-standin >/dev/null 2>&1; then return; fi
  command -v debootstrap >/dev/null || _install_packages debootstrap || return
  local folder
  folder=$(mktemp -d) || return
  _standin_say "building a stand-in for Debian (debootstrap) ..."
  if ! _install_as_root debootstrap --variant=minbase --include=ca-certificates bookworm "$folder/root" >"$folder/log" 2>&1; then
    tail -5 "$folder/log" >&2
    _install_as_root rm -rf "$folder"
    return 1
  fi
  _install_as_root cp /etc/ssl/certs/ca-certificates.crt "$folder/root/etc/ssl/certs/ca-certificates.crt"
  _install_as_root tar -C "$folder/root" -c . | docker import - sessionferry-standin >/dev/null
  local code=$?
  _install_as_root rm -rf "$folder"
  return "$code"
}

# Reads the rest of a Dockerfile.
_standin() {
  _standin_base || return
  { echo "FROM sessionferry-standin"; cat; } | DOCKER_BUILDKIT=0 docker build -q -t "$1" - >/dev/null
}

# What a Dockerfile needs to have the script that it reads as /start.
_standin_start() { echo "RUN echo $(base64 -w0) | base64 -d >/start && chmod 755 /start"; }

_standin_build() {
  local apt='apt-get -qq update && apt-get -qq install -y --no-install-recommends'
  case $1 in
    debian:bookworm-slim)
      _standin_base && docker tag sessionferry-standin "$1" ;;
    redis:7-bookworm)
      _standin "$1" <<EOF
RUN $apt redis-server && rm -rf /var/lib/apt/lists/* && install -d -o redis /data
WORKDIR /data
USER redis
CMD ["redis-server", "--protected-mode", "no"]
EOF
      ;;
    postgres:15-bookworm)
      # As the image does it: a cluster with one user and one database, open to the network by password.
      local start
      start=$(_standin_start <<'EOF'
#!/bin/sh
set -e
if [ ! -e "$PGDATA/PG_VERSION" ]; then
  echo "$POSTGRES_PASSWORD" >/data/password
  initdb --username="$POSTGRES_USER" --pwfile=/data/password --auth=scram-sha-256 >/dev/null
  rm /data/password
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  echo "CREATE DATABASE $POSTGRES_DB;" | postgres --single -j postgres >/dev/null
fi
exec postgres -h 0.0.0.0 -k /tmp "$@"
EOF
      )
      _standin "$1" <<EOF
RUN $apt postgresql-15 && rm -rf /var/lib/apt/lists/* && install -d -o postgres /data
$start
USER postgres
ENV PATH=/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin PGDATA=/data/cluster
ENTRYPOINT ["/start"]
EOF
      ;;
    mariadb:10.11)
      # The same: one database, and a user that reaches it from the network.
      local start
      start=$(_standin_start <<'EOF'
#!/bin/sh
set -e
if [ ! -e /data/mysql ]; then mariadb-install-db --datadir=/data --skip-test-db >/dev/null; fi
cat >/tmp/first.sql <<END
CREATE DATABASE IF NOT EXISTS $MARIADB_DATABASE CHARACTER SET utf8mb4;
CREATE USER IF NOT EXISTS $MARIADB_USER IDENTIFIED BY '$MARIADB_PASSWORD';
GRANT ALL ON $MARIADB_DATABASE.* TO $MARIADB_USER;
END
exec mariadbd --datadir=/data --bind-address=0.0.0.0 --socket=/tmp/mysqld.sock --pid-file=/tmp/mysqld.pid --init-file=/tmp/first.sql "$@"
EOF
      )
      _standin "$1" <<EOF
RUN $apt mariadb-server && rm -rf /var/lib/apt/lists/* && install -d -o mysql /data
$start
USER mysql
ENTRYPOINT ["/start"]
EOF
      ;;
    python:3.11-slim-bookworm)
      _standin "$1" <<EOF
RUN $apt python3 python3-pip && rm -rf /var/lib/apt/lists/* /usr/lib/python3*/EXTERNALLY-MANAGED \
 && ln -s python3 /usr/bin/python
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
EOF
      ;;
    *)
      _standin_say "there is no stand-in for $1"
      return 1
      ;;
  esac
}

need_images() {
  local image
  for image in "$@"; do
    if docker image inspect "$image" >/dev/null 2>&1; then continue; fi
    if timeout 120 docker pull -q "$image" >/dev/null 2>&1; then continue; fi
    _standin_say "$image cannot be pulled: building a stand-in of that name from Debian's packages"
    _standin_build "$image" || return
  done
}
