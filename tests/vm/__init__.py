"""A booted Debian 12, for what only a whole machine shows: systemd as PID 1, pure cgroup v2 with every controller, all
capabilities, AppArmor. QEMU emulates it in software, without a network device, so a program in it is some 25 times slower.

`image` builds its disk (once), `checkout` packs this working tree, `machine` boots the two and runs commands by `agent`,
which is the only file here that runs inside. `lane` is what scripts/test --vm runs; the tests of `inside` run only there.

    python -m tests.vm COMMAND...      one command in a fresh machine, in the checkout
    python -m tests.vm                 boots and says hello
"""
