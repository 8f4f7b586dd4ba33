#!/bin/busybox sh
# The first process of a virtual machine: runs the script /tests, its output on the second serial
# line, and turns the machine off. The kernel's messages stay on the first.
/bin/busybox --install -s /busybox
export PATH=/usr/bin:/bin:/usr/sbin:/sbin:/busybox HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
ip link set lo up
# Without it the line would end in \r\n.
stty -F /dev/ttyS1 raw
/tests </dev/null >/dev/ttyS1 2>&1
poweroff -f
