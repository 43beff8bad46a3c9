/* keys find NAME            looks for a key of that name in this process's session keyring; prints `found`, or why not
 * keys with NAME COMMAND…   executes the command in a new session, which has a key of that name */

#include <errno.h>
#include <linux/keyctl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc == 3) {
        long key = syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user", argv[2], 0);

        puts(key > 0 ? "found" : strerror(errno));
        return 0;
    }
    if (argc < 4 || syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0) < 0)
        return 1;
    if (syscall(SYS_add_key, "user", argv[2], "secret", 6, KEY_SPEC_SESSION_KEYRING) < 0)
        return 1;
    execv(argv[3], argv + 3);
    return 1;
}
