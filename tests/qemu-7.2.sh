#!/bin/bash
# QEMU 7.2 as Debian 12 has it, beside the one that is installed: its packages unpacked into a folder, and FOLDER/qemu, a
# program that runs it from there. Does nothing where that is there. usage: qemu-7.2.sh FOLDER
# Exit code 3: apt on this machine knows no QEMU 7.2 (on Debian 13 the suite bookworm has to be among its sources).
set -euo pipefail
folder=$(realpath -m "${1:?usage: qemu-7.2.sh FOLDER}")
mkdir -p "$(dirname "$folder")"
exec 9>"$folder.lock"
flock 9
[ -x "$folder/qemu" ] && exit 0

newest() { apt-cache madison "$1" | awk -F' *[|] *' -v wanted="$2" 'index($2, wanted) == 1 { print $2; exit }'; }
version=$(newest qemu-system-x86 1:7.2)
if [ -z "$version" ]; then
  echo "apt knows no QEMU 7.2: add the suite bookworm to its sources, and apt-get update" >&2
  exit 3
fi

new=$folder.new.$$
trap 'rm -rf "$new"' EXIT
mkdir -p "$new/packages" "$new/root"
cd "$new/packages"
# The firmware of its own time; what it is linked with comes along where this machine lacks it.
wanted=("qemu-system-x86=$version" "qemu-system-common=$version" "qemu-system-data=$(newest qemu-system-data 1:7.2)"
  "seabios=$(newest seabios 1.16.2)")
while read -r library; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$library" 2>/dev/null)" = installed ] || wanted+=("$library")
done < <(apt-cache show "qemu-system-x86=$version" | sed -n 's/^Depends: //p' | tr ',' '\n' | grep -o '^ *lib[a-z0-9.+-]*' | sort -u)
apt-get download -q -o APT::Sandbox::User=root "${wanted[@]}" >/dev/null
for package in *.deb; do dpkg-deb --extract "$package" "$new/root"; done
cd /
rm -r "$new/packages"

cat >"$new/qemu" <<WRAPPER
#!/bin/sh
usr=$folder/root/usr
export LD_LIBRARY_PATH=\$usr/lib/x86_64-linux-gnu QEMU_MODULE_DIR=\$usr/lib/x86_64-linux-gnu/qemu
exec \$usr/bin/qemu-system-x86_64 -L \$usr/share/qemu -L \$usr/share/seabios "\$@"
WRAPPER
chmod 755 "$new/qemu"
rm -rf "$folder"
mv "$new" "$folder"
"$folder/qemu" --version | head -1
