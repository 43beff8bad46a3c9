/* A first process that reaps what is orphaned in its PID namespace: of a pod whose containers share one, and, with a command
 * line, of a container that asked for an init. Then it starts the command, passes signals on to it, and ends as that does.
 *
 * Static and alone in a read-only root without capabilities where containers of a pod can reach it by /proc/1.
 * Built by scripts/setup. */

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *text)
{
    if (write(2, text, strlen(text))) {
    }
}

static pid_t start(char **command, const sigset_t *before)
{
    pid_t child = fork();

    if (child != 0)
        return child;
    /* A process group of its own, in the terminal's foreground: ctrl-C is for the command, and once. */
    setpgid(0, 0);
    signal(SIGTTOU, SIG_IGN);
    tcsetpgrp(0, getpid());
    signal(SIGTTOU, SIG_DFL);
    sigprocmask(SIG_SETMASK, before, 0);
    execvp(command[0], command);
    say(command[0]);
    say(": ");
    say(strerror(errno));
    say("\n");
    _exit(errno == ENOENT ? 127 : 126);
}

int main(int count, char **words)
{
    sigset_t set, before;
    pid_t child = 0;

    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, &before);
    if (count > 1 && (child = start(words + 1, &before)) < 0) {
        say("init: cannot fork\n");
        return 126;
    }
    for (;;) {
        int status, number = sigwaitinfo(&set, 0);
        pid_t ended;

        if (number != SIGCHLD) {
            if (!child && (number == SIGTERM || number == SIGINT))
                return 0;
            if (child)
                kill(child, number);
            continue;
        }
        while ((ended = waitpid(-1, &status, WNOHANG)) > 0)
            if (ended == child)
                return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    }
}
