/* The first process of a pod whose containers share a PID namespace: it reaps what is orphaned there, and nothing else.
 *
 * Static and alone in a read-only root without capabilities, because containers of the pod can reach it by /proc/1.
 * Built by scripts/setup. */

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, 0);
    for (;;) {
        while (waitpid(-1, 0, WNOHANG) > 0)
            ;
        if (sigwaitinfo(&set, 0) != SIGCHLD)
            return 0;
    }
}
