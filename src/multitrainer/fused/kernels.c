/* The updates of SGD, NAG, Adam and AdamW for all Parameters in one operation of MXNet's engine.
 *
 * The operation runs in the engine's thread and on the OpenMP team that MXNet's operators use. Like any operator of
 * MXNet, it locks every array that it reads or writes while it runs, and it owns what it needs. launch() hands it to the
 * engine and does not wait for it.
 *
 * The kernels give the bits of MXNet's operators: same operations on float32, in the same order, and none contracted to a
 * fused multiply-add (setup.py compiles with -ffp-contract=off). kernels.py mirrors the structures.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The compiler makes a version for each of these processors, and the loader chooses the one that fits. */
#if defined(__x86_64__) && defined(__GLIBC__) && (!defined(__clang__) || __clang_major__ >= 14)
#define KERNEL __attribute__((target_clones("avx512f", "avx2", "default"))) static void
#else
#define KERNEL static void
#endif

#ifdef __FAST_MATH__
#error "kernels of other bits: compile without -ffast-math"
#endif

enum kernel { SGD, SGD_MOMENTUM, NAG, NAG_MOMENTUM, ADAM, ADAMW };

/* Functions of MXNet's C interface (include/mxnet/c_api.h), of its memory blocks, and of its OpenMP runtime. */
struct functions {
    int (*detach)(void *array, void **out);
    int (*free_array)(void *array);
    int (*get_data)(void *array, void **out);
    int (*get_fresh)(void *array, int *out);
    int (*set_fresh)(void *array, int state);
    int (*push)(void (*function)(void *, void *), void *parameter, void (*deleter)(void *), const void *context,
                void **read, int read_count, void **written, int written_count, const void *property, int priority,
                const char *name);
    bool (*is_mkldnn_layout)(const void *block); /* NULL if MXNet was built without MKL-DNN */
    void (*make_plain)(void *block);
    void *(*openmp)(void); /* NULL for one thread, as are those that follow */
    int (*recommended_threads)(const void *openmp, bool exclude_reserved);
    void (*run_team)(void (*worker)(void *), void *parameter, unsigned threads, unsigned flags);
    int (*thread_number)(void);
    int (*thread_count)(void);
};

/* What stays the same from update to update. */
struct plan {
    struct functions mxnet;
    int32_t kernel;
    int32_t tensors;
    int32_t arrays;      /* of each tensor: weight, gradient, states */
    int32_t context[2];  /* type and id of the device */
    const char *name;    /* of the operation, for MXNet's profiler */
    void **handles;      /* of the arrays of the first tensor, then of the second, and so on */
    const int64_t *ends; /* the number of values in the first tensor, in the first two, and so on */
};

/* The numbers of one update; an array has one number for each tensor. */
struct numbers {
    float rescale;
    float momentum; /* beta1 of Adam */
    float beta2;
    const float *learning_rates;
    const float *weight_decays;
    const float *kept;     /* of Adam: the part of the weight that decay leaves */
    const float *epsilons; /* of Adam */
};

/* What kernels.py compares, so that it does not use what was compiled from another version of this file. Count VERSION up
 * when a structure or the enumeration changes. */
#define VERSION 1
const int64_t abi[3] = {VERSION, sizeof(struct plan), sizeof(struct numbers)};

/* One update; owned by the engine's operation, in one piece of memory with all arrays that it points to. */
struct job {
    struct plan plan;
    struct numbers numbers;
    float **values;        /* the memory of each array */
    bool *was_mkldnn_layout; /* of each weight */
};

/* MultiSGDKernel without momentum (src/operator/optimizer_op-inl.h). */
KERNEL sgd(int64_t count, float *restrict w, const float *restrict g, float lr, float wd, float rescale)
{
    const float decay = lr * wd, rate = lr * rescale;
    for (int64_t i = 0; i < count; i++)
        w[i] = w[i] + (0.0f - decay * w[i] - rate * g[i]);
}

/* MultiSGDKernel. */
KERNEL sgd_momentum(int64_t count, float *restrict w, const float *restrict g, float *restrict m, float lr, float wd,
                    float rescale, float momentum)
{
    const float decay = lr * wd, rate = lr * rescale;
    for (int64_t i = 0; i < count; i++) {
        m[i] = momentum * m[i] - decay * w[i] - rate * g[i];
        w[i] = w[i] + m[i];
    }
}

/* SGDKernel, which NAG without momentum runs. */
KERNEL nag(int64_t count, float *restrict w, const float *restrict g, float lr, float wd, float rescale)
{
    const float keep = 1.0f - lr * wd, rate = lr * rescale;
    for (int64_t i = 0; i < count; i++)
        w[i] = keep * w[i] - rate * g[i];
}

/* NAGMomKernel: the weight decay in the momentum is that of the updated weight. */
KERNEL nag_momentum(int64_t count, float *restrict w, const float *restrict g, float *restrict m, float lr, float wd,
                    float rescale, float momentum)
{
    const float ahead = momentum + 1.0f;
    for (int64_t i = 0; i < count; i++) {
        const float decayed = momentum * m[i], gradient = rescale * g[i], before = w[i];
        w[i] = before - decayed + ahead * (decayed - lr * (gradient + wd * before));
        m[i] = decayed - lr * (gradient + wd * w[i]);
    }
}

/* NAGMomKernel on a weight in a layout of MKL-DNN: it reads a copy, and so the weight before the update. */
KERNEL nag_momentum_of_copy(int64_t count, float *restrict w, const float *restrict g, float *restrict m, float lr,
                            float wd, float rescale, float momentum)
{
    const float ahead = momentum + 1.0f;
    for (int64_t i = 0; i < count; i++) {
        const float decayed = momentum * m[i], gradient = rescale * g[i], before = w[i];
        w[i] = before - decayed + ahead * (decayed - lr * (gradient + wd * before));
        m[i] = decayed - lr * (gradient + wd * before);
    }
}

/* AdamUpdateKernel, on kept * w in place of the weight. Adam keeps 1, which changes no bit; AdamW has a weight decay of 0
 * here, as in its call of MXNet's operator. */
KERNEL adam(int64_t count, float *restrict w, const float *restrict g, float *restrict m, float *restrict v, float lr,
            float wd, float kept, float rescale, float beta1, float beta2, float epsilon)
{
    const float rest1 = 1.0f - beta1, rest2 = 1.0f - beta2;
    for (int64_t i = 0; i < count; i++) {
        const float weight = kept * w[i], gradient = g[i] * rescale + weight * wd;
        m[i] = beta1 * m[i] + rest1 * gradient;
        v[i] = beta2 * v[i] + rest2 * gradient * gradient;
        w[i] = weight - lr * m[i] / (sqrtf(v[i]) + epsilon);
    }
}

/* Update `count` values of a tensor, from its value `offset` on. */
static void update_values(const struct job *job, int tensor, int64_t offset, int64_t count)
{
    const struct numbers *n = &job->numbers;
    float *const *values = job->values + (int64_t)tensor * job->plan.arrays;
    const float lr = n->learning_rates[tensor], wd = n->weight_decays[tensor];
    float *w = values[0] + offset, *g = values[1] + offset;
    float *m = job->plan.arrays > 2 ? values[2] + offset : NULL, *v = job->plan.arrays > 3 ? values[3] + offset : NULL;

    switch ((enum kernel)job->plan.kernel) {
    case SGD:
        sgd(count, w, g, lr, wd, n->rescale);
        break;
    case SGD_MOMENTUM:
        sgd_momentum(count, w, g, m, lr, wd, n->rescale, n->momentum);
        break;
    case NAG:
        nag(count, w, g, lr, wd, n->rescale);
        break;
    case NAG_MOMENTUM:
        (job->was_mkldnn_layout[tensor] ? nag_momentum_of_copy : nag_momentum)(count, w, g, m, lr, wd, n->rescale,
                                                                               n->momentum);
        break;
    case ADAM:
    case ADAMW:
        adam(count, w, g, m, v, lr, wd, n->kept[tensor], n->rescale, n->momentum, n->beta2, n->epsilons[tensor]);
        break;
    }
}

/* Update the share of one thread: an equal part of all values, whichever tensors they belong to. */
static void update_share(const struct job *job, int64_t thread, int64_t threads)
{
    const int64_t *ends = job->plan.ends, total = ends[job->plan.tensors - 1];
    /* Shares are multiples of 16 values, a cache line, so that no two threads write to the same one. */
    const int64_t first = total * thread / threads / 16 * 16;
    const int64_t last = thread == threads - 1 ? total : total * (thread + 1) / threads / 16 * 16;
    for (int tensor = 0; tensor < job->plan.tensors; tensor++) {
        const int64_t begin = tensor ? ends[tensor - 1] : 0;
        const int64_t low = first > begin ? first : begin, high = last < ends[tensor] ? last : ends[tensor];
        if (low < high)
            update_values(job, tensor, low - begin, high - low);
    }
}

static void update_share_of_this_thread(void *parameter)
{
    const struct job *job = parameter;
    update_share(job, job->plan.mxnet.thread_number(), job->plan.mxnet.thread_count());
}

/* Find the memory of every array, after bringing the array into the plain layout.
 *
 * A prediction leaves weights in a layout of MKL-DNN. MXNDArrayGetData would ask the engine to restore the plain one and
 * wait for it, while the engine waits for this operation. */
static void locate(struct job *job)
{
    const struct functions *mxnet = &job->plan.mxnet;
    for (int i = 0; i < job->plan.tensors * job->plan.arrays; i++) {
        void *handle = job->plan.handles[i], *data = NULL;
        void *block = *(void **)handle; /* an NDArray begins with the pointer to its block */
        if (mxnet->is_mkldnn_layout && mxnet->is_mkldnn_layout(block)) {
            mxnet->make_plain(block);
            if (i % job->plan.arrays == 0)
                job->was_mkldnn_layout[i / job->plan.arrays] = true;
        }
        mxnet->get_data(handle, &data);
        job->values[i] = data;
    }
}

/* Make the whole update; the engine calls it (EngineSyncFunc in include/mxnet/c_api.h). */
static void update(void *run_context, void *parameter)
{
    struct job *job = parameter;
    const struct functions *mxnet = &job->plan.mxnet;
    const int threads = mxnet->openmp ? mxnet->recommended_threads(mxnet->openmp(), true) : 1;
    (void)run_context;
    locate(job);
    if (threads > 1)
        mxnet->run_team(update_share_of_this_thread, job, threads, 0);
    else
        update_share(job, 0, 1);
}

/* Free what an operation owns, whether it ran or not (EngineFuncParamDeleter). */
static void release(void *parameter)
{
    struct job *job = parameter;
    for (int i = 0; i < job->plan.tensors * job->plan.arrays; i++)
        if (job->plan.handles[i])
            job->plan.mxnet.free_array(job->plan.handles[i]);
    free(job);
}

/* Take `count` items of a size from the memory that *at points to, with a copy of `values` if there are any. */
static void *take(char **at, size_t count, size_t size, const void *values)
{
    void *taken = *at;
    if (values)
        memcpy(taken, values, count * size);
    *at += (count * size + 7) / 8 * 8;
    return taken;
}

static struct job *new_job(const struct plan *plan, const struct numbers *numbers)
{
    const size_t tensors = plan->tensors, arrays = tensors * plan->arrays;
    const size_t of_tensor = sizeof(int64_t) + 4 * sizeof(float) + sizeof(bool), of_array = 2 * sizeof(void *);
    struct job *job = calloc(1, sizeof *job + tensors * of_tensor + arrays * of_array + 8 * 8);
    if (!job)
        return NULL;
    char *at = (char *)(job + 1);
    job->plan = *plan;
    job->numbers = *numbers;
    job->plan.handles = take(&at, arrays, sizeof(void *), NULL);
    job->values = take(&at, arrays, sizeof(float *), NULL);
    job->plan.ends = take(&at, tensors, sizeof(int64_t), plan->ends);
    job->numbers.learning_rates = take(&at, tensors, sizeof(float), numbers->learning_rates);
    job->numbers.weight_decays = take(&at, tensors, sizeof(float), numbers->weight_decays);
    job->numbers.kept = take(&at, tensors, sizeof(float), numbers->kept);
    job->numbers.epsilons = take(&at, tensors, sizeof(float), numbers->epsilons);
    job->was_mkldnn_layout = take(&at, tensors, sizeof(bool), NULL);
    return job;
}

/* Whether a backward pass has written the gradient of every weight since its last update. */
int all_fresh(const struct plan *plan)
{
    for (int i = 0; i < plan->tensors; i++) {
        int fresh = 0;
        plan->mxnet.get_fresh(plan->handles[i * plan->arrays], &fresh);
        if (!fresh)
            return 0;
    }
    return 1;
}

/* Hand an update to the engine and mark the gradients as used; return 0, or -1 if MXNet has an error or memory is short.
 *
 * For Python this is one call, which nothing can interrupt. */
int launch(const struct plan *plan, const struct numbers *numbers)
{
    const int count = plan->tensors * plan->arrays;
    struct job *job = new_job(plan, numbers);
    if (!job)
        return -1;
    for (int i = 0; i < count; i++)
        if (plan->mxnet.detach(plan->handles[i], &job->plan.handles[i])) {
            release(job);
            return -1;
        }
    /* All arrays count as written: the layout of a gradient may change, too. */
    const int code = plan->mxnet.push(update, job, release, plan->context, NULL, 0, job->plan.handles, count, NULL, 0,
                                      plan->name);
    if (code == 0)
        for (int i = 0; i < plan->tensors; i++)
            plan->mxnet.set_fresh(plan->handles[i * plan->arrays], 0);
    return code;
}
