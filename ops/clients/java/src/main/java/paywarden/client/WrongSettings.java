package paywarden.client;

/** A setting or a policy is wrong. {@link #where} is its path, such as {@code limits[1].amount_over.EUR}. */
public final class WrongSettings extends IllegalArgumentException {
    private static final long serialVersionUID = 1L;

    public final String where;

    WrongSettings(String where, String text) {
        super(where.isEmpty() ? text : where + ": " + text);
        this.where = where;
    }
}
