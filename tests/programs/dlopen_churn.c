// Several threads load, use and unload libraries all the time, two threads each the same one.
//
// Most of the time a library is gone again before anybody could have looked at it, and another one
// lies where it was. How often it is really loaded, and its constructor runs, is up to the threads.
//
// expect: function=first_plugin_allocates api=malloc allocations=5080 allocated_bytes=1071880 frees=1080 freed_bytes=227880 live_blocks=4000 live_bytes=844000
// expect: function=second_plugin_allocates api=malloc allocations=5240 allocated_bytes=1168520 frees=1240 freed_bytes=276520 live_blocks=4000 live_bytes=892000
// expect: within=use_first api=malloc allocations=5080 allocated_bytes=1071880 frees=1080 freed_bytes=227880 live_blocks=4000 live_bytes=844000
// expect: within=use_second api=malloc allocations=5240 allocated_bytes=1168520 frees=1240 freed_bytes=276520 live_blocks=4000 live_bytes=892000
#include "plugins.h"
#include <pthread.h>

enum { THREADS = 4, ROUNDS = 20 };

static void *first_thread(void *unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        void *library;
        use_first(load("libplugin_first.so", "first_plugin_allocates", &library));
        require(dlclose(library) == 0, 13);
    }
    return NULL;
}

static void *second_thread(void *unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        void *library;
        use_second(load("libplugin_second.so", "second_plugin_allocates", &library));
        require(dlclose(library) == 0, 14);
    }
    return NULL;
}

int main(int argc, char **argv) {
    find_plugins();
    rendezvous(argc, argv, "ready");
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        void *(*body)(void *) = i % 2 == 0 ? first_thread : second_thread;
        require(pthread_create(&threads[i], NULL, body, NULL) == 0, 15);
    }
    for (int i = 0; i < THREADS; i++) {
        require(pthread_join(threads[i], NULL) == 0, 16);
    }
    rendezvous(argc, argv, "done");
    return 0;
}
