package paywarden.client;

/** Functions that the client calls in its own threads and its callers'; they must be quick. Their errors are dropped. */
public interface Hooks {
    /**
     * For metrics, once for each call.
     *
     * @param operation {@code score}, {@code shadow} or {@code reconcile}
     * @param outcome {@code answered}, {@code refused}, or the cause of a stand-in
     */
    default void onCall(String operation, String outcome, double seconds, int attempts) {}

    /**
     * The end of a stand-in.
     *
     * @param decision the service's, or null
     * @param end {@code answered}, {@code refused}, {@code expired}, {@code full} or {@code closed}
     */
    default void onReconciled(Decision standIn, Decision decision, String end) {}

    /** The caller's own decision beside the service's, or beside null and the cause. */
    default void onShadow(Object own, Decision decision, String cause) {}
}
