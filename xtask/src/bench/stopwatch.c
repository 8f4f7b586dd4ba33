/* Runs a command and tells its CPU time and its duration, under whatever tool runs the stopwatch.
 *
 *   stopwatch [NAME=VALUE…] COMMAND [ARGUMENT…]
 *
 * On stdout, each on a line of its own:
 *
 *   stopwatch: pid PID                               the process that will be the command
 *   stopwatch: done STATUS CPU_US WALL_US RSS_KIB    its wait status, and what it used
 *
 * Between the two it waits for a line on stdin, so that a tracer can attach to PID first. The
 * command gets no stdin and its output is thrown away. Statically linked, so that LD_PRELOAD passes
 * through it, and without allocations of its own. The command dies with the stopwatch.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static _Noreturn void die(const char *what)
{
    dprintf(STDERR_FILENO, "stopwatch: %s\n", what);
    _exit(2);
}

static long long now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000ll + now.tv_nsec / 1000;
}

static long long as_us(struct timeval time)
{
    return time.tv_sec * 1000000ll + time.tv_usec;
}

static _Noreturn void become(char **command, int gate)
{
    char byte;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (read(gate, &byte, 1) != 1) _exit(2);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd <= 2; fd++) dup2(null, fd);
    execvp(command[0], command);
    _exit(127);
}

int main(int argc, char **argv)
{
    char **command = argv + 1;
    int gate[2];
    char byte;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (; command < argv + argc && strchr(*command, '='); command++) putenv(*command);
    if (command == argv + argc) die("usage: stopwatch [NAME=VALUE...] COMMAND [ARGUMENT...]");
    if (pipe2(gate, O_CLOEXEC) != 0) die("no pipe");
    pid_t child = fork();
    if (child < 0) die("cannot fork");
    if (child == 0) become(command, gate[0]);

    dprintf(STDOUT_FILENO, "stopwatch: pid %d\n", child);
    do {
        if (read(STDIN_FILENO, &byte, 1) != 1) die("stdin was closed before the start");
    } while (byte != '\n');
    long long start_us = now_us();
    if (write(gate[1], "g", 1) != 1) die("the child is gone");

    int status;
    struct rusage usage;
    if (wait4(child, &status, 0, &usage) != child) die("cannot wait");
    long long wall_us = now_us() - start_us;
    dprintf(STDOUT_FILENO, "stopwatch: done %d %lld %lld %ld\n", status,
            as_us(usage.ru_utime) + as_us(usage.ru_stime), wall_us, usage.ru_maxrss);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
