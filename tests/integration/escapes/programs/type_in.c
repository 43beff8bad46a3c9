/* type_in: puts a character into the input of each terminal that it can get at, as if somebody had typed it (TIOCSTI); takes them for
 * its own first (TIOCSCTTY), if that can be. */

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(void)
{
    int terminals[] = {0, 1, 2, open("/dev/tty", O_RDWR), open("/dev/console", O_RDWR)};

    for (unsigned i = 0; i < sizeof terminals / sizeof *terminals; i++) {
        for (int steal = 0; steal < 2; steal++) {
            ioctl(terminals[i], TIOCSCTTY, steal);
            ioctl(terminals[i], TIOCSTI, "x");
        }
    }
    setsid();
    for (unsigned i = 0; i < sizeof terminals / sizeof *terminals; i++) {
        ioctl(terminals[i], TIOCSCTTY, 0);
        ioctl(terminals[i], TIOCSTI, "x");
    }
    return 0;
}
